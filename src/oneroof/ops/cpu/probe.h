// What the machine gives: bytes a second from memory, and multiply-adds a second from registers. Floors to compare with.

#pragma once

#include "pool.h"
#include "simd.h"

namespace oneroof {
namespace ONEROOF_VARIANT {
namespace {

constexpr int64_t PROBE_CHUNK = int64_t{1} << 22;  // bytes of a task
constexpr int CHAINS = WIDE ? 24 : 12;             // sums that are independent: more than the latency needs

// Reads `bytes` of memory once, four streams at a time, and gives something of them so that nothing is left out.
inline double read_memory(const void* data, int64_t bytes) {
  Call call;
  auto sums = static_cast<float*>(call_scratch(0, (bytes / PROBE_CHUNK + 1) * sizeof(float)));
  int64_t tasks = bytes / PROBE_CHUNK;
  parallel(tasks, [&](int64_t task, int) {
    auto p = static_cast<const uint8_t*>(data) + task * PROBE_CHUNK;
    constexpr int64_t part = PROBE_CHUNK / 4;
    F sum[4] = {zero(), zero(), zero(), zero()};
    for (int64_t i = 0; i < part; i += 64) {
      for (int s = 0; s < 4; s++) {
        _mm_prefetch(reinterpret_cast<const char*>(p + s * part + i + 2048), _MM_HINT_T0);
        sum[s] = add(sum[s], load(reinterpret_cast<const float*>(p + s * part + i)));
      }
    }
    sums[task] = ONEROOF_VARIANT::sum(add(add(sum[0], sum[1]), add(sum[2], sum[3])));
  });
  double total = 0;
  for (int64_t i = 0; i < tasks; i++) total += sums[i];
  return total;
}

// `rounds` times CHAINS multiply-adds of a register on each thread, in registers; gives the number of operations.
inline double multiply_add(int64_t rounds) {
  Call call;
  int threads = thread_count();
  auto sums = static_cast<float*>(call_scratch(0, threads * sizeof(float)));
  parallel(threads, [&](int64_t task, int) {
#if defined(__AVX512F__)
    using Register = __m512;  // plain registers: the compiler keeps a structure's in memory
    auto step = [](Register c) { return _mm512_fmadd_ps(c, _mm512_set1_ps(0.999f), _mm512_set1_ps(1e-3f)); };
#else
    using Register = __m256;
    auto step = [](Register c) { return _mm256_fmadd_ps(c, _mm256_set1_ps(0.999f), _mm256_set1_ps(1e-3f)); };
#endif
    Register chain[CHAINS];
    for (int i = 0; i < CHAINS; i++) chain[i] = Register{} + static_cast<float>(i);  // no two of them alike
    for (int64_t r = 0; r < rounds; r++) {
#pragma GCC unroll 24
      for (int i = 0; i < CHAINS; i++) chain[i] = step(chain[i]);
    }
    float total = 0;
    for (auto& one : chain) {
      float lanes[sizeof(Register) / sizeof(float)];
      std::memcpy(lanes, &one, sizeof one);
      total += lanes[0];
    }
    sums[task] = total;
  });
  float total = 0;
  for (int i = 0; i < threads; i++) total += sums[i];
  return static_cast<double>(rounds) * CHAINS * (WIDE ? 16 : 8) * 2 * threads + (total == 0.0f ? 1.0 : 0.0);
}

}  // namespace
}  // namespace ONEROOF_VARIANT
}  // namespace oneroof
