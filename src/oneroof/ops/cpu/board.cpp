// How ranks wait for each other: a short spin, then asleep on the other's count.

#include "board.h"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <climits>

#include <immintrin.h>

namespace oneroof {
namespace {

constexpr int SPINS = 4000;  // as in pool.cpp

bool reached(const std::atomic<uint32_t>& turns, uint32_t turn) {
  return static_cast<int32_t>(turns.load(std::memory_order_acquire) - turn) >= 0;
}

void futex(std::atomic<uint32_t>* word, int operation, uint32_t value, const timespec* limit) {
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(word), operation, value, limit, nullptr, 0);
}

}  // namespace

bool await_rank(const Board& b, int64_t rank, uint32_t turn) {
  Line& line = b.notice()->line[rank];
  for (int i = 0; i < SPINS; i++) {
    if (reached(line.turns, turn)) return true;
    _mm_pause();
  }
  const timespec limit{0, 100'000'000};  // in case that whoever should wake us has died
  for (;;) {
    uint32_t seen = line.turns.load(std::memory_order_acquire);
    if (static_cast<int32_t>(seen - turn) >= 0) return true;
    if (b.notice()->ended.load(std::memory_order_acquire)) return false;
    line.waiters.fetch_add(1, std::memory_order_seq_cst);
    futex(&line.turns, FUTEX_WAIT, seen, &limit);
    line.waiters.fetch_sub(1, std::memory_order_seq_cst);
  }
}

bool await_all(const Board& b, uint32_t turn) {
  for (int64_t r = 0; r < b.ranks; r++) {
    if (r != b.rank && !await_rank(b, r, turn)) return false;
  }
  return true;
}

void count_up(const Board& b, uint32_t turn) {
  Line& line = b.notice()->line[b.rank];
  line.turns.store(turn, std::memory_order_seq_cst);
  if (line.waiters.load(std::memory_order_seq_cst) > 0) futex(&line.turns, FUTEX_WAKE, INT_MAX, nullptr);
}

void end_all(const Board& b) {
  b.notice()->ended.store(1, std::memory_order_seq_cst);
  for (int64_t r = 0; r < b.ranks; r++) futex(&b.notice()->line[r].turns, FUTEX_WAKE, INT_MAX, nullptr);
}

}  // namespace oneroof
