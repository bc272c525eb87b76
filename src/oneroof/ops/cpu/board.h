// Memory that the ranks of one machine share, and how they wait for each other over it.
//
// Every rank counts the turns that it has taken part in. In a turn it writes into its own slot, of which it has two,
// and then counts up; whoever needs what it wrote waits for that. Nobody writes turn t before all have counted t - 1,
// and who has counted that has read what was written in t - 2, into the same slot.

#pragma once

#include <atomic>
#include <cstdint>

namespace oneroof {

constexpr int MOST_RANKS = 62;

struct alignas(64) Line {  // of a rank
  std::atomic<uint32_t> turns;    // what others wait on
  std::atomic<uint32_t> waiters;  // that sleep
};

struct Notice {  // at the beginning of the shared memory, a page
  alignas(64) std::atomic<uint32_t> ended;  // somebody has died: nobody waits any more
  Line line[MOST_RANKS];
};
constexpr int64_t NOTICE = 4096;
static_assert(sizeof(Notice) <= NOTICE);

struct Board {  // a rank's view of it; library.py mirrors it
  char* memory;  // a Notice, then ranks * 2 slots
  int64_t rank, ranks, slot;  // slot: bytes
  int64_t turn;

  Notice* notice() const { return reinterpret_cast<Notice*>(memory); }
  char* place(int64_t of, uint32_t turn) const { return memory + NOTICE + (2 * of + (turn & 1)) * slot; }
};

bool await_rank(const Board& b, int64_t rank, uint32_t turn);  // false: somebody has died
bool await_all(const Board& b, uint32_t turn);
void count_up(const Board& b, uint32_t turn);
void end_all(const Board& b);

}  // namespace oneroof
