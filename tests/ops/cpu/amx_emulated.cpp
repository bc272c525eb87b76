// The tiles of amx.h over emulated instructions, by themselves: what test_amx.py compiles in seconds.

#define ONEROOF_EMULATE_AMX
#define ONEROOF_VARIANT emulated

#include "abi.h"
#include "pool.h"
#include "simd.h"

#include "amx.h"

namespace oneroof {
namespace {

struct Memory {
  void* data = nullptr;
  ~Memory() { std::free(data); }
  void* of(size_t bytes) {  // a block of its own size, so that AddressSanitizer sees its end
    std::free(data);
    return data = std::aligned_alloc(64, (bytes + 63) / 64 * 64);
  }
};

Memory slots[10], scratch;

}  // namespace

// One thread instead of pool.cpp's.
void run_parallel(int64_t tasks, Work work, void* state) {
  for (int64_t task = 0; task < tasks; task++) work(state, task, 0);
}
int thread_count() { return 1; }
void* call_scratch(int slot, size_t bytes) { return slots[slot].of(bytes); }
void* thread_scratch(int, size_t bytes) { return scratch.of(bytes); }
void lock_call() {}
void unlock_call() {}

namespace emulated {

// y = x @ w^T in float32, [T][ceil(N / 16) * 16], `at_once` panels in a task. False where tiles do not serve.
bool multiply(const Product& p, int at_once) {
  const Weight& w = *p.weight;
  Layout layout(w);
  Rows x = prepare(w, {p.x, 0, p.tokens, p.x_stride, p.x_type, p.input, p.input_scale}, 0);
  auto out = static_cast<float*>(std::aligned_alloc(64, (p.tokens + 1) * at_once * LANES * sizeof(float)));
  bool served = true;
  for (int64_t panel = 0; panel < layout.panels && served; panel += at_once) {
    Job job{&w, &layout, &x, 0, {}, 0, out};
    for (; job.count < at_once && panel + job.count < layout.panels; job.count++) {
      job.panel[job.count] = panel + job.count;
    }
    served = tiled(job, p.tokens);
    if (served) tiles(job, p.tokens, 0);
    for (int64_t m = 0; m < p.tokens && served; m++) {
      for (int i = 0; i < job.count; i++) {
        store(static_cast<float*>(p.y) + m * p.y_stride + job.panel[i] * LANES, scaled(job, m, i));
      }
    }
  }
  std::free(out);
  return served;
}

}  // namespace emulated
}  // namespace oneroof

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT int emulated_multiply(const oneroof::Product* p, int panels) {
  return oneroof::emulated::multiply(*p, panels);
}
