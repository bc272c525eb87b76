// How a step of a panel becomes float32, and the loops that multiply: registers only, no memory of their own.
//
// A sum over K is one chain of multiply-adds in the order of K for each output, whatever the tile: so a row's result
// does not depend on how many rows stand beside it. (A pair of bfloat16 or four bytes are one link of the chain where
// an instruction takes them at once.)

#pragma once

#include "abi.h"
#include "simd.h"

namespace oneroof {
namespace ONEROOF_VARIANT {
namespace {

constexpr int64_t AHEAD = 4096;  // bytes that are fetched ahead in each stream of weights, to the second level

struct Float32Step {
  static constexpr int inputs = 1, bytes = 64;
  void decode(const uint8_t* p, F* out) const { out[0] = load(reinterpret_cast<const float*>(p)); }
};

struct Float16Step {
  static constexpr int inputs = 1, bytes = 32;
  void decode(const uint8_t* p, F* out) const { out[0] = load_f16(reinterpret_cast<const uint16_t*>(p)); }
};

struct BFloat16Step {
  static constexpr int inputs = 2, bytes = 64;
  void decode(const uint8_t* p, F* out) const {
    I pair = load_bytes(p);
    out[0] = as_float(left<16>(pair));
    out[1] = as_float(band(pair, set1(static_cast<int32_t>(0xFFFF0000))));
  }
};

struct Int8Step {
  static constexpr int inputs = 4, bytes = 64;
  void decode(const uint8_t* p, F* out) const {
    I four = load_bytes(p);
    out[0] = to_float(right<24>(left<24>(four)));
    out[1] = to_float(right<24>(left<16>(four)));
    out[2] = to_float(right<24>(left<8>(four)));
    out[3] = to_float(right<24>(four));
  }
};

alignas(64) const float FROM_MINUS_8[16] = {-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7};
alignas(64) const float FROM_0[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

struct Int4Step {  // zero points are 8
  static constexpr int inputs = 8, bytes = 64;
  Table values = table(FROM_MINUS_8);
  void decode(const uint8_t* p, F* out) const {
    I eight = load_bytes(p);
    out[0] = nibble(eight), out[1] = nibble(right<8>(eight));
    out[2] = nibble(right<16>(eight)), out[3] = nibble(right<24>(eight));
    out[4] = nibble(right<4>(eight)), out[5] = nibble(right<12>(eight));
    out[6] = nibble(right<20>(eight)), out[7] = nibble(right<28>(eight));
  }
  F nibble(I x) const {
#if defined(__AVX512F__)
    return look_up(values, x);
#else
    return to_float(sub(band(x, set1(15)), set1(8)));  // quicker than two permutations of eight
#endif
  }
};

struct Int4ZeroStep {  // zero points of their own
  static constexpr int inputs = 8, bytes = 64;
  F zero;
  void decode(const uint8_t* p, F* out) const {
    I eight = load_bytes(p);
    out[0] = nibble(eight), out[1] = nibble(right<8>(eight));
    out[2] = nibble(right<16>(eight)), out[3] = nibble(right<24>(eight));
    out[4] = nibble(right<4>(eight)), out[5] = nibble(right<12>(eight));
    out[6] = nibble(right<20>(eight)), out[7] = nibble(right<28>(eight));
  }
  F nibble(I x) const { return sub(to_float(band(x, set1(15))), zero); }
};

inline Int4ZeroStep zero_step(const uint8_t* zero) {
  alignas(64) float wide[LANES];
  for (int i = 0; i < LANES; i++) wide[i] = zero[i];
  return {load(wide)};
}

// Streams of weights that are read side by side, and those that come after them.
template <int N>
struct Streams {
  const uint8_t* at[N];
  const uint8_t* next[N];  // what follows the last step of `at`; read by nobody here, only fetched

  template <int bytes>
  void fetch(int n, int64_t s, int64_t steps) const {
    int64_t ahead = s * bytes + AHEAD, size = steps * bytes;
    const uint8_t* p = ahead < size ? at[n] + ahead : next[n] + (ahead - size);
    _mm_prefetch(reinterpret_cast<const char*>(p), _MM_HINT_T1);
  }
};

// sum[m][n] += x[m] * panel n, over `steps` steps. x rows are `stride` floats apart.
template <class Step, int M, int N, bool far>
inline void multiply(const Step (&step)[N], const Streams<N>& panel, const float* x, int64_t stride, int64_t steps,
                     F (&sum)[M][N]) {
  for (int64_t s = 0; s < steps; s++) {
    const float* at = x + s * Step::inputs;
#pragma GCC unroll 8
    for (int n = 0; n < N; n++) {
      if (far) panel.template fetch<Step::bytes>(n, s, steps);
      F w[Step::inputs];
      step[n].decode(panel.at[n] + s * Step::bytes, w);
#pragma GCC unroll 8
      for (int i = 0; i < Step::inputs; i++) {
#pragma GCC unroll 16
        for (int m = 0; m < M; m++) sum[m][n] = fma(set1(at[m * stride + i]), w[i], sum[m][n]);
      }
    }
  }
}

#if defined(__AVX512VNNI__)
// What one instruction multiplies: a word of 32 bits of x with 64 bytes of weights. `vectors` words belong to a step.
// Bytes of x are signed; weights are made unsigned by adding something, for which a sum's beginning makes up. `zeros`:
// weights may have zero points that differ.
struct Int8Dot {
  static constexpr int vectors = 1, inputs = 4;
  static constexpr bool zeros = false;
  using Sum = I;
  using Register = __m512i;
  static void decode(const uint8_t* p, __m512i* w) {
    w[0] = _mm512_xor_si512(_mm512_loadu_si512(p), _mm512_set1_epi8(-128));
  }
  static void step(Register& sum, __m512i x, __m512i w) { sum = _mm512_dpbusd_epi32(sum, w, x); }
};

struct Int4Dot {
  static constexpr int vectors = 2, inputs = 8;
  static constexpr bool zeros = true;
  using Sum = I;
  using Register = __m512i;
  static void decode(const uint8_t* p, __m512i* w) {
    __m512i both = _mm512_loadu_si512(p), mask = _mm512_set1_epi8(15);
    w[0] = _mm512_and_si512(both, mask);
    w[1] = _mm512_and_si512(_mm512_srli_epi32(both, 4), mask);
  }
  static void step(Register& sum, __m512i x, __m512i w) { sum = _mm512_dpbusd_epi32(sum, w, x); }
};

#if defined(__AVX512BF16__)
struct PairsDot {  // two bfloat16 at once; denormal numbers count as 0
  static constexpr int vectors = 1, inputs = 2;
  static constexpr bool zeros = false;
  using Sum = F;
  using Register = __m512;
  static void decode(const uint8_t* p, __m512i* w) { w[0] = _mm512_loadu_si512(p); }
  static void step(Register& sum, __m512i x, __m512i w) { sum = _mm512_dpbf16_ps(sum, (__m512bh)x, (__m512bh)w); }
};
#endif

// begin(m, p) + plane p of x[m] * panel n, to end(m, n, those of all planes), in registers all the way. x rows are
// `stride` words apart, planes `plane` words.
template <class Dot, int P, int M, int N, bool far, class Begin, class End>
inline void multiply_words(const Streams<N>& panel, const uint32_t* x, int64_t stride, int64_t plane, int64_t steps,
                           const Begin& begin, const End& end) {
  typename Dot::Register held[M][N][P];  // plain registers: the compiler keeps a structure's in memory
#pragma GCC unroll 16
  for (int m = 0; m < M; m++) {
#pragma GCC unroll 2
    for (int p = 0; p < P; p++) {
      typename Dot::Register first = begin(m, p).v;
#pragma GCC unroll 8
      for (int n = 0; n < N; n++) held[m][n][p] = first;
    }
  }
  for (int64_t s = 0; s < steps; s++) {
    __m512i w[N][Dot::vectors];
#pragma GCC unroll 8
    for (int n = 0; n < N; n++) {
      if (far) panel.template fetch<64>(n, s, steps);
      Dot::decode(panel.at[n] + s * 64, w[n]);
    }
#pragma GCC unroll 16
    for (int m = 0; m < M; m++) {
#pragma GCC unroll 2
      for (int v = 0; v < Dot::vectors; v++) {
#pragma GCC unroll 2
        for (int p = 0; p < P; p++) {
          uint32_t word = x[m * stride + p * plane + s * Dot::vectors + v];
          __m512i wide = _mm512_set1_epi32(static_cast<int32_t>(word));
#pragma GCC unroll 8
          for (int n = 0; n < N; n++) Dot::step(held[m][n][p], wide, w[n][v]);
        }
      }
    }
  }
#pragma GCC unroll 16
  for (int m = 0; m < M; m++) {
#pragma GCC unroll 8
    for (int n = 0; n < N; n++) {
      typename Dot::Sum sum[P];
#pragma GCC unroll 2
      for (int p = 0; p < P; p++) sum[p].v = held[m][n][p];
      end(m, n, sum);
    }
  }
}
#endif

}  // namespace
}  // namespace ONEROOF_VARIANT
}  // namespace oneroof
