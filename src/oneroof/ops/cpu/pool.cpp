// The pool of threads: a generation counter wakes the workers, an atomic counter deals out the tasks.

#include "pool.h"

#include <linux/futex.h>
#include <pthread.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <new>
#include <thread>
#include <vector>

#include <immintrin.h>

namespace oneroof {
namespace {

constexpr int SPINS = 4000;      // of about 40 cycles each: some 50 us, longer than Python is between two kernels
constexpr int MOST = 1024;       // threads
constexpr int64_t CLOSED = INT64_MAX / 2;

struct Buffer {
  void* data = nullptr;
  size_t size = 0;

  void* at_least(size_t bytes) {
    if (bytes > size) {
      std::free(data);
      size = (bytes + bytes / 4 + 4095) / 4096 * 4096;
      data = std::aligned_alloc(64, size);
      if (data == nullptr) {
        size = 0;
        std::abort();
      }
    }
    return data;
  }
};

struct Pool {
  std::mutex call;
  std::vector<std::thread> workers;
  std::atomic<uint32_t> generation{0};  // what sleeping workers wait on
  std::atomic<int> sleepers{0};
  std::atomic<int> busy{0};  // workers that have not finished this generation
  std::atomic<bool> stopping{false};
  std::atomic<int64_t> next{CLOSED};
  int64_t tasks = 0;
  Work work = nullptr;
  void* state = nullptr;
  Buffer scratch[MOST];
  Buffer slots[10];
};

Pool* pool = new Pool;  // never destroyed: a worker may outlive the statics of the process
std::atomic<int> wanted{0};  // 0: nobody has chosen yet, which counts as one

long futex(std::atomic<uint32_t>* word, int operation, uint32_t value) {
  return syscall(SYS_futex, reinterpret_cast<uint32_t*>(word), operation, value, nullptr, nullptr, 0);
}

void take_tasks(Pool* p, int thread) {
  for (;;) {
    int64_t task = p->next.fetch_add(1, std::memory_order_relaxed);
    if (task >= p->tasks) return;
    p->work(p->state, task, thread);
  }
}

void await_generation(Pool* p, uint32_t seen) {
  for (int i = 0; i < SPINS; i++) {
    if (p->generation.load(std::memory_order_acquire) != seen) return;
    _mm_pause();
  }
  while (p->generation.load(std::memory_order_acquire) == seen) {
    p->sleepers.fetch_add(1);
    futex(&p->generation, FUTEX_WAIT_PRIVATE, seen);
    p->sleepers.fetch_sub(1);
  }
}

void live(Pool* p, int thread, uint32_t seen) {
  for (;;) {
    await_generation(p, seen);
    seen = p->generation.load(std::memory_order_acquire);
    if (p->stopping.load(std::memory_order_acquire)) return;
    take_tasks(p, thread);
    p->busy.fetch_sub(1, std::memory_order_release);
  }
}

void wake(Pool* p) {
  p->generation.fetch_add(1, std::memory_order_seq_cst);
  if (p->sleepers.load(std::memory_order_seq_cst) > 0) futex(&p->generation, FUTEX_WAKE_PRIVATE, INT32_MAX);
}

void stop(Pool* p) {
  p->stopping.store(true, std::memory_order_release);
  wake(p);
  for (auto& worker : p->workers) worker.join();
  p->workers.clear();
  p->stopping.store(false, std::memory_order_release);
}

void resize(Pool* p, int threads) {
  if (static_cast<int>(p->workers.size()) == threads - 1) return;
  stop(p);
  uint32_t seen = p->generation.load();
  for (int i = 1; i < threads; i++) p->workers.emplace_back(live, p, i, seen);
}

void forget_workers() { pool = new Pool; }  // a forked child has none of them; their memory is let go

struct AtFork {
  AtFork() { pthread_atfork(nullptr, nullptr, forget_workers); }
} at_fork;

}  // namespace

void run_parallel(int64_t tasks, Work work, void* state) {
  Pool* p = pool;
  int threads = thread_count();
  if (threads == 1 || tasks <= 1) {
    for (int64_t task = 0; task < tasks; task++) work(state, task, 0);
    return;
  }
  resize(p, threads);
  p->tasks = tasks;
  p->work = work;
  p->state = state;
  p->busy.store(threads - 1, std::memory_order_relaxed);
  p->next.store(0, std::memory_order_relaxed);
  wake(p);
  take_tasks(p, 0);
  for (int i = 0; p->busy.load(std::memory_order_acquire) != 0; i++) {
    if (i < 20 * SPINS) {
      _mm_pause();
    } else {
      std::this_thread::yield();  // a worker has lost its core
    }
  }
}

int thread_count() {
  int chosen = wanted.load(std::memory_order_relaxed);
  return chosen < 1 ? 1 : chosen;
}

bool threads_chosen() { return wanted.load(std::memory_order_relaxed) > 0; }

void set_thread_count(int threads) { wanted.store(threads < 1 ? 1 : threads > MOST ? MOST : threads); }

void* thread_scratch(int thread, size_t bytes) { return pool->scratch[thread].at_least(bytes); }

void* call_scratch(int slot, size_t bytes) { return pool->slots[slot].at_least(bytes); }

void lock_call() { pool->call.lock(); }

void unlock_call() { pool->call.unlock(); }

}  // namespace oneroof
