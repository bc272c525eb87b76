// Sixteen lanes, whatever the instruction set: one zmm register with AVX-512, two ymm with AVX2.
//
// F holds float32, I holds int32. Everything here is one instruction or a fixed sequence of them, so that a kernel
// written over F gives the same bits however its loops are tiled. Included once per variant, inside its namespace.

#pragma once

#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstring>

namespace oneroof {
namespace ONEROOF_VARIANT {
namespace {

constexpr int LANES = 16;

inline int lanes_of(int64_t left) { return static_cast<int>(left < LANES ? left : LANES); }  // of the next sixteen

inline float bf16_to_float(uint16_t x) {
  uint32_t bits = static_cast<uint32_t>(x) << 16;
  float out;
  std::memcpy(&out, &bits, 4);
  return out;
}

#if defined(__AVX512F__)

constexpr bool WIDE = true;  // 32 registers of 16 lanes

struct F {
  __m512 v;
};
struct I {
  __m512i v;
};

inline F zero() { return {_mm512_setzero_ps()}; }
inline F set1(float x) { return {_mm512_set1_ps(x)}; }
inline F load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline void store(float* p, F a) { _mm512_storeu_ps(p, a.v); }
inline __mmask16 first(int n) { return static_cast<__mmask16>(n >= 16 ? 0xFFFF : (1u << n) - 1); }
inline F load(const float* p, int n) { return {_mm512_maskz_loadu_ps(first(n), p)}; }
inline void store(float* p, F a, int n) { _mm512_mask_storeu_ps(p, first(n), a.v); }
inline F add(F a, F b) { return {_mm512_add_ps(a.v, b.v)}; }
inline F sub(F a, F b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline F mul(F a, F b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline F div(F a, F b) { return {_mm512_div_ps(a.v, b.v)}; }
inline F fma(F a, F b, F c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }  // a * b + c
inline F max(F a, F b) { return {_mm512_max_ps(a.v, b.v)}; }              // b where either is NaN
inline F min(F a, F b) { return {_mm512_min_ps(a.v, b.v)}; }
inline F abs(F a) { return {_mm512_abs_ps(a.v)}; }
inline F round(F a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
inline F where_less(F a, F b, F yes, F no) {  // yes where a < b, else no (also where either is NaN)
  return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ), no.v, yes.v)};
}
inline F where_nan(F a, F yes, F no) {
  return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q), no.v, yes.v)};
}
inline F keep_first(F a, int n, F other) { return {_mm512_mask_blend_ps(first(n), other.v, a.v)}; }
inline I load_bytes(const void* p) { return {_mm512_loadu_si512(p)}; }  // 64 bytes, 4 in each lane
inline I set1(int32_t x) { return {_mm512_set1_epi32(x)}; }
inline I zero_int() { return {_mm512_setzero_si512()}; }
inline I add(I a, I b) { return {_mm512_add_epi32(a.v, b.v)}; }
inline I sub(I a, I b) { return {_mm512_sub_epi32(a.v, b.v)}; }
inline I mul(I a, I b) { return {_mm512_mullo_epi32(a.v, b.v)}; }
inline I band(I a, I b) { return {_mm512_and_si512(a.v, b.v)}; }
inline I bxor(I a, I b) { return {_mm512_xor_si512(a.v, b.v)}; }
template <int n>
inline I left(I a) { return {_mm512_slli_epi32(a.v, n)}; }
template <int n>
inline I right(I a) { return {_mm512_srai_epi32(a.v, n)}; }  // keeps the sign
template <int n>
inline I right_unsigned(I a) { return {_mm512_srli_epi32(a.v, n)}; }
inline F to_float(I a) { return {_mm512_cvtepi32_ps(a.v)}; }
inline I to_int(F a) { return {_mm512_cvtps_epi32(a.v)}; }  // to nearest even
inline F as_float(I a) { return {_mm512_castsi512_ps(a.v)}; }
inline I as_int(F a) { return {_mm512_castps_si512(a.v)}; }
inline void store(int32_t* p, I a) { _mm512_storeu_si512(p, a.v); }
inline I load(const int32_t* p) { return {_mm512_loadu_si512(p)}; }
inline F load_bf16(const uint16_t* p) {
  __m256i h = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16))};
}
inline F load_f16(const uint16_t* p) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
inline void store_f16(uint16_t* p, F a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT));
}
inline void store_bf16(uint16_t* p, F a) {  // to nearest even; NaN stays NaN
  __m512i bits = _mm512_castps_si512(a.v);
  __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF)));
  __mmask16 nan = _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q);
  rounded = _mm512_mask_blend_epi32(nan, rounded, _mm512_set1_epi32(0x7FC00000));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16)));
}
inline F load_i8(const int8_t* p) {
  return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))))};
}
inline void store_i8(int8_t* p, I a) {  // saturates
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtsepi32_epi8(a.v));
}
inline F power_of_two(I n) {  // 2^n, -126 <= n <= 127
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(n.v, _mm512_set1_epi32(127)), 23))};
}
struct Table {  // sixteen floats, looked up by the low four bits of each lane
  __m512 v;
};
inline Table table(const float* p) { return {_mm512_loadu_ps(p)}; }
inline F look_up(Table t, I i) { return {_mm512_permutexvar_ps(i.v, t.v)}; }

inline float sum(F a) {  // a fixed tree
  __m256 b = _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
  __m128 c = _mm_add_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
  c = _mm_add_ps(c, _mm_movehl_ps(c, c));
  return _mm_cvtss_f32(_mm_add_ss(c, _mm_shuffle_ps(c, c, 1)));
}
inline float largest(F a) { return _mm512_reduce_max_ps(a.v); }

#else  // AVX2 with FMA and F16C

constexpr bool WIDE = false;  // 16 registers of 8 lanes

struct F {
  __m256 lo, hi;
};
struct I {
  __m256i lo, hi;
};

inline F zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
inline F set1(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline F load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline void store(float* p, F a) {
  _mm256_storeu_ps(p, a.lo);
  _mm256_storeu_ps(p + 8, a.hi);
}
inline __m256i first8(int n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
inline F load(const float* p, int n) {
  return {_mm256_maskload_ps(p, first8(n)), _mm256_maskload_ps(p + 8, first8(n - 8))};
}
inline void store(float* p, F a, int n) {
  _mm256_maskstore_ps(p, first8(n), a.lo);
  _mm256_maskstore_ps(p + 8, first8(n - 8), a.hi);
}
inline F add(F a, F b) { return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)}; }
inline F sub(F a, F b) { return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)}; }
inline F mul(F a, F b) { return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)}; }
inline F div(F a, F b) { return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)}; }
inline F fma(F a, F b, F c) {
  return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
inline F max(F a, F b) { return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)}; }
inline F min(F a, F b) { return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)}; }
inline F abs(F a) {
  __m256 mask = _mm256_castsi256_ps(_mm256_set1_epi32(0x7FFFFFFF));
  return {_mm256_and_ps(a.lo, mask), _mm256_and_ps(a.hi, mask)};
}
inline F round(F a) {
  constexpr int mode = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  return {_mm256_round_ps(a.lo, mode), _mm256_round_ps(a.hi, mode)};
}
inline F where_less(F a, F b, F yes, F no) {
  return {_mm256_blendv_ps(no.lo, yes.lo, _mm256_cmp_ps(a.lo, b.lo, _CMP_LT_OQ)),
          _mm256_blendv_ps(no.hi, yes.hi, _mm256_cmp_ps(a.hi, b.hi, _CMP_LT_OQ))};
}
inline F where_nan(F a, F yes, F no) {
  return {_mm256_blendv_ps(no.lo, yes.lo, _mm256_cmp_ps(a.lo, a.lo, _CMP_UNORD_Q)),
          _mm256_blendv_ps(no.hi, yes.hi, _mm256_cmp_ps(a.hi, a.hi, _CMP_UNORD_Q))};
}
inline F keep_first(F a, int n, F other) {
  return {_mm256_blendv_ps(other.lo, a.lo, _mm256_castsi256_ps(first8(n))),
          _mm256_blendv_ps(other.hi, a.hi, _mm256_castsi256_ps(first8(n - 8)))};
}
inline I load_bytes(const void* p) {
  auto q = static_cast<const __m256i*>(p);
  return {_mm256_loadu_si256(q), _mm256_loadu_si256(q + 1)};
}
inline I set1(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
inline I zero_int() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
inline I add(I a, I b) { return {_mm256_add_epi32(a.lo, b.lo), _mm256_add_epi32(a.hi, b.hi)}; }
inline I sub(I a, I b) { return {_mm256_sub_epi32(a.lo, b.lo), _mm256_sub_epi32(a.hi, b.hi)}; }
inline I mul(I a, I b) { return {_mm256_mullo_epi32(a.lo, b.lo), _mm256_mullo_epi32(a.hi, b.hi)}; }
inline I band(I a, I b) { return {_mm256_and_si256(a.lo, b.lo), _mm256_and_si256(a.hi, b.hi)}; }
inline I bxor(I a, I b) { return {_mm256_xor_si256(a.lo, b.lo), _mm256_xor_si256(a.hi, b.hi)}; }
template <int n>
inline I left(I a) { return {_mm256_slli_epi32(a.lo, n), _mm256_slli_epi32(a.hi, n)}; }
template <int n>
inline I right(I a) { return {_mm256_srai_epi32(a.lo, n), _mm256_srai_epi32(a.hi, n)}; }
template <int n>
inline I right_unsigned(I a) { return {_mm256_srli_epi32(a.lo, n), _mm256_srli_epi32(a.hi, n)}; }
inline F to_float(I a) { return {_mm256_cvtepi32_ps(a.lo), _mm256_cvtepi32_ps(a.hi)}; }
inline I to_int(F a) { return {_mm256_cvtps_epi32(a.lo), _mm256_cvtps_epi32(a.hi)}; }
inline F as_float(I a) { return {_mm256_castsi256_ps(a.lo), _mm256_castsi256_ps(a.hi)}; }
inline I as_int(F a) { return {_mm256_castps_si256(a.lo), _mm256_castps_si256(a.hi)}; }
inline void store(int32_t* p, I a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), a.lo);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + 8), a.hi);
}
inline I load(const int32_t* p) { return load_bytes(p); }
inline __m128i half(const void* p, int i) { return _mm_loadu_si128(static_cast<const __m128i*>(p) + i); }
inline F load_bf16(const uint16_t* p) {
  return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half(p, 0)), 16)),
          _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half(p, 1)), 16))};
}
inline F load_f16(const uint16_t* p) { return {_mm256_cvtph_ps(half(p, 0)), _mm256_cvtph_ps(half(p, 1))}; }
inline void store_f16(uint16_t* p, F a) {
  auto q = reinterpret_cast<__m128i*>(p);
  _mm_storeu_si128(q, _mm256_cvtps_ph(a.lo, _MM_FROUND_TO_NEAREST_INT));
  _mm_storeu_si128(q + 1, _mm256_cvtps_ph(a.hi, _MM_FROUND_TO_NEAREST_INT));
}
inline __m256i round_bf16(__m256 a) {
  __m256i bits = _mm256_castps_si256(a);
  __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF)));
  __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q));
  rounded = _mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7FC00000), nan);
  return _mm256_srli_epi32(rounded, 16);
}
inline void store_bf16(uint16_t* p, F a) {
  __m256i both = _mm256_packus_epi32(round_bf16(a.lo), round_bf16(a.hi));  // by 128-bit halves
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_permute4x64_epi64(both, 0xD8));
}
inline F load_i8(const int8_t* p) {
  __m128i b = half(p, 0);
  return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(b)),
          _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(b, 8)))};
}
inline void store_i8(int8_t* p, I a) {
  __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(a.lo, a.hi), 0xD8);
  __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), bytes);
}
inline F power_of_two(I n) {
  __m256i bias = _mm256_set1_epi32(127);
  return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n.lo, bias), 23)),
          _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n.hi, bias), 23))};
}
struct Table {
  __m256 lo, hi;
};
inline Table table(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline __m256 look_up8(Table t, __m256i i) {
  __m256 low = _mm256_permutevar8x32_ps(t.lo, i), high = _mm256_permutevar8x32_ps(t.hi, i);
  return _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(i, 28)));
}
inline F look_up(Table t, I i) { return {look_up8(t, i.lo), look_up8(t, i.hi)}; }
inline float sum(F a) {
  __m256 b = _mm256_add_ps(a.lo, a.hi);
  __m128 c = _mm_add_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
  c = _mm_add_ps(c, _mm_movehl_ps(c, c));
  return _mm_cvtss_f32(_mm_add_ss(c, _mm_shuffle_ps(c, c, 1)));
}
inline float largest(F a) {
  __m256 b = _mm256_max_ps(a.lo, a.hi);
  __m128 c = _mm_max_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
  c = _mm_max_ps(c, _mm_movehl_ps(c, c));
  return _mm_cvtss_f32(_mm_max_ss(c, _mm_shuffle_ps(c, c, 1)));
}

#endif

// exp(x) for x <= 88.7; 0 below -87.3, NaN for NaN. Cody and Waite's reduction and a polynomial of degree 6,
// relative error below 2e-7.
inline F exp(F x) {
  F clipped = min(max(set1(-87.33654f), x), set1(88.72283f));  // max gives its second where one is NaN
  F n = round(mul(clipped, set1(1.44269504f)));
  F r = fma(n, set1(-0.693359375f), clipped);
  r = fma(n, set1(2.12194440e-4f), r);
  F p = set1(1.9875691500e-4f);
  p = fma(p, r, set1(1.3981999507e-3f));
  p = fma(p, r, set1(8.3334519073e-3f));
  p = fma(p, r, set1(4.1665795894e-2f));
  p = fma(p, r, set1(1.6666665459e-1f));
  p = fma(p, r, set1(5.0000001201e-1f));
  p = fma(p, mul(r, r), add(r, set1(1.0f)));
  I half = right<1>(to_int(n));  // in two steps, as 2^128 is no float32
  F y = mul(mul(p, power_of_two(half)), power_of_two(sub(to_int(n), half)));
  y = where_less(x, set1(-87.33654f), zero(), y);
  y = where_less(set1(88.72283f), x, set1(INFINITY), y);
  return where_nan(x, x, y);
}

inline F silu(F x) { return div(x, add(set1(1.0f), exp(sub(zero(), x)))); }

// Any of the three float types, by its code (abi.h): 0 float32, 1 bfloat16, 2 float16.
inline F load_as(const void* p, int64_t i, int type) {
  if (type == 0) return load(static_cast<const float*>(p) + i);
  auto q = static_cast<const uint16_t*>(p) + i;
  return type == 1 ? load_bf16(q) : load_f16(q);
}
inline F load_as(const void* p, int64_t i, int type, int n) {  // the first n, else 0
  if (n >= LANES) return load_as(p, i, type);
  if (type == 0) return load(static_cast<const float*>(p) + i, n);
  uint16_t part[16] = {};
  std::memcpy(part, static_cast<const uint16_t*>(p) + i, n * sizeof(uint16_t));
  return type == 1 ? load_bf16(part) : load_f16(part);
}
inline void store_as(void* p, int64_t i, int type, F a) {
  if (type == 0) return store(static_cast<float*>(p) + i, a);
  auto q = static_cast<uint16_t*>(p) + i;
  type == 1 ? store_bf16(q, a) : store_f16(q, a);
}
inline void store_as(void* p, int64_t i, int type, F a, int n) {
  if (n >= LANES) return store_as(p, i, type, a);
  if (type == 0) return store(static_cast<float*>(p) + i, a, n);
  uint16_t part[16];
  type == 1 ? store_bf16(part, a) : store_f16(part, a);
  std::memcpy(static_cast<uint16_t*>(p) + i, part, n * sizeof(uint16_t));
}

}  // namespace
}  // namespace ONEROOF_VARIANT
}  // namespace oneroof
