// The one pool of threads: outputs are dealt out as tasks, and no two threads share a sum.
//
// Workers wait for the next call with a short spin and then sleep, so that an idle process costs nothing and torch's
// own threads find their cores free.

#pragma once

#include <cstddef>
#include <cstdint>

namespace oneroof {

using Work = void (*)(void* state, int64_t task, int thread);

// Runs work(state, t, thread) for t in 0 .. tasks - 1, in any order; returns when all are done. One caller at a time:
// a second one waits. Not to be called from within a task.
void run_parallel(int64_t tasks, Work work, void* state);

int thread_count();
bool threads_chosen();
void set_thread_count(int threads);

// Memory of a thread of the pool, 64-byte aligned, which keeps its contents until the next call asks for more.
void* thread_scratch(int thread, size_t bytes);

// Memory of the caller, by slot (0 .. 9); valid until the slot is asked for again.
void* call_scratch(int slot, size_t bytes);

// Calls from several threads of the process are served one after the other: held during a whole kernel.
void lock_call();
void unlock_call();
struct Call {
  Call() { lock_call(); }
  ~Call() { unlock_call(); }
};

template <class Fn>
void parallel(int64_t tasks, Fn&& fn) {  // fn(task, thread)
  run_parallel(tasks, [](void* state, int64_t task, int thread) { (*static_cast<Fn*>(state))(task, thread); },
               const_cast<void*>(static_cast<const void*>(&fn)));
}

}  // namespace oneroof
