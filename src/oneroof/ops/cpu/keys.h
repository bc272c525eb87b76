// Keys and values of attention: where they lie, how they are stored, and how a block of them is laid for the
// kernels.
//
// A block is 64 keys at an absolute position. Its keys become float32 with keys as lanes, [d][64], so that a
// score is one chain of multiply-adds over d; its values become float32 rows. Where a block has places that
// nobody sees, the nearest place that somebody sees is read in their stead: what lies past a sequence's end
// is never touched.

#pragma once

#include <algorithm>

#include "abi.h"
#include "pool.h"
#include "simd.h"

namespace oneroof {
namespace ONEROOF_VARIANT {
namespace {

constexpr int BLOCK = 64;              // keys
constexpr int GROUPS = BLOCK / LANES;  // registers of scores

// How a score is made: of numbers as float32, or of pairs of bfloat16 as they are, where an instruction multiplies
// them; everything else about PAIRS is as with BFLOAT16.
constexpr int32_t PAIRS = 16;
constexpr int32_t held(int32_t type) { return type == PAIRS ? static_cast<int32_t>(BFLOAT16) : type; }
constexpr int64_t size_of(int32_t type) { return held(type) == FLOAT32 ? 4 : type == INT8 ? 1 : 2; }
constexpr int words_of(int32_t type) { return type == PAIRS ? 1 : static_cast<int>(4 / size_of(type)); }  // of a word

inline int64_t bytes_of(int32_t type) { return type == FLOAT32 ? 4 : type == INT8 ? 1 : 2; }
inline int64_t padded(int64_t dim) { return (dim + LANES - 1) / LANES * LANES; }

struct Place {  // of one key and its value, of the first head that is asked for
  const char* key;
  const char* value;
};

struct Block {
  int64_t first;  // position of its first key
  Place at[BLOCK];
  int64_t row[BLOCK];  // of the scales of an int8 pool
};

// The places of keys lo .. hi - 1 of one sequence, from a kv head on, that lie in the block from `first` on.
struct Finder {
  const Attention& a;
  int64_t sequence, head, size = bytes_of(a.slots ? a.pool_type : a.type);

  void uncached(int64_t lo, int64_t hi, Block& block) const {
    int64_t row = a.bounds[sequence];
    auto k = static_cast<const char*>(a.k) + head * a.dim * size;
    auto v = static_cast<const char*>(a.v) + head * a.dim * size;
    for (int64_t p = lo; p < hi; p++) {
      block.at[p - block.first] = {k + (row + p) * a.k_stride * size, v + (row + p) * a.v_stride * size};
    }
  }

  void cached(int64_t lo, int64_t hi, Block& block) const {
    auto pages = a.table + sequence * a.table_width;
    auto k = static_cast<const char*>(a.key_pool), v = static_cast<const char*>(a.value_pool);
    for (int64_t p = lo, page = lo / a.page_size, offset = lo % a.page_size; p < hi; page++, offset = 0) {
      int64_t many = std::min(hi - p, a.page_size - offset), i = p - block.first;
      int64_t row = (pages[page] * a.page_size + offset) * a.kv_heads + head;
      for (int64_t n = 0; n < many; n++, row += a.kv_heads) {
        block.at[i + n] = {k + row * a.dim * size, v + row * a.dim * size};
        block.row[i + n] = row;
      }
      p += many;
    }
  }

  void find(int64_t first, int64_t lo, int64_t hi, Block& block) const {
    block.first = first;
    lo = std::max(lo, first), hi = std::min(hi, first + BLOCK);
    a.slots ? cached(lo, hi, block) : uncached(lo, hi, block);
    int from = static_cast<int>(lo - first), end = static_cast<int>(hi - first);
    for (int i = 0; i < from; i++) block.at[i] = block.at[from];
    for (int i = end; i < (end + LANES - 1) / LANES * LANES; i++) block.at[i] = block.at[end - 1];
  }
};

// Four 32-bit words of sixteen rows, from `byte` on: out[w] has the word w of row i in lane i.
#if defined(__AVX512F__)
inline __m512i four_rows(const Place* at, int64_t byte) {  // rows 0, 4, 8, 12: one in each 128 bits
  auto part = [&](int i) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(at[i].key + byte)); };
  __m512i rows = _mm512_castsi128_si512(part(0));
  rows = _mm512_inserti32x4(rows, part(4), 1);
  rows = _mm512_inserti32x4(rows, part(8), 2);
  return _mm512_inserti32x4(rows, part(12), 3);
}
inline void turn(const Place* at, int64_t byte, I* out) {
  __m512i a = four_rows(at, byte), b = four_rows(at + 1, byte), c = four_rows(at + 2, byte),
          d = four_rows(at + 3, byte);
  __m512i ab = _mm512_unpacklo_epi32(a, b), cd = _mm512_unpacklo_epi32(c, d);
  __m512i ab_high = _mm512_unpackhi_epi32(a, b), cd_high = _mm512_unpackhi_epi32(c, d);
  out[0] = {_mm512_unpacklo_epi64(ab, cd)};
  out[1] = {_mm512_unpackhi_epi64(ab, cd)};
  out[2] = {_mm512_unpacklo_epi64(ab_high, cd_high)};
  out[3] = {_mm512_unpackhi_epi64(ab_high, cd_high)};
}
inline F low_half(I a) { return {_mm512_cvtph_ps(_mm512_cvtepi32_epi16(a.v))}; }
#else
inline __m256i two_rows(const Place* at, int64_t byte) {  // rows 0 and 4
  auto part = [&](int i) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(at[i].key + byte)); };
  return _mm256_inserti128_si256(_mm256_castsi128_si256(part(0)), part(4), 1);
}
inline void turn8(const Place* at, int64_t byte, __m256i* out) {
  __m256i a = two_rows(at, byte), b = two_rows(at + 1, byte), c = two_rows(at + 2, byte),
          d = two_rows(at + 3, byte);
  __m256i ab = _mm256_unpacklo_epi32(a, b), cd = _mm256_unpacklo_epi32(c, d);
  __m256i ab_high = _mm256_unpackhi_epi32(a, b), cd_high = _mm256_unpackhi_epi32(c, d);
  out[0] = _mm256_unpacklo_epi64(ab, cd);
  out[1] = _mm256_unpackhi_epi64(ab, cd);
  out[2] = _mm256_unpacklo_epi64(ab_high, cd_high);
  out[3] = _mm256_unpackhi_epi64(ab_high, cd_high);
}
inline void turn(const Place* at, int64_t byte, I* out) {
  __m256i lo[4], hi[4];
  turn8(at, byte, lo);
  turn8(at + 8, byte, hi);
  for (int i = 0; i < 4; i++) out[i] = {lo[i], hi[i]};
}
inline F low_half(I a) {
  __m256i mask = _mm256_set1_epi32(0xFFFF);
  __m256i both = _mm256_packus_epi32(_mm256_and_si256(a.lo, mask), _mm256_and_si256(a.hi, mask));
  both = _mm256_permute4x64_epi64(both, 0xD8);
  return {_mm256_cvtph_ps(_mm256_castsi256_si128(both)), _mm256_cvtph_ps(_mm256_extracti128_si256(both, 1))};
}
#endif

// The numbers in a word of each lane, the first one first.
template <int type>
inline void spread(I word, F* out) {
  if constexpr (type == FLOAT32 || type == PAIRS) {
    out[0] = as_float(word);
  } else if constexpr (type == BFLOAT16) {
    out[0] = as_float(left<16>(word));
    out[1] = as_float(band(word, set1(static_cast<int32_t>(0xFFFF0000))));
  } else if constexpr (type == FLOAT16) {
    out[0] = low_half(word);
    out[1] = low_half(right_unsigned<16>(word));
  } else {
    out[0] = to_float(right<24>(left<24>(word)));
    out[1] = to_float(right<24>(left<16>(word)));
    out[2] = to_float(right<24>(left<8>(word)));
    out[3] = to_float(right<24>(word));
  }
}

// ... into rows of out [..][BLOCK]
template <int type>
inline void spread_rows(I word, float* out) {
  constexpr int parts = words_of(type);
  F part[parts];
  spread<type>(word, part);
  for (int n = 0; n < parts; n++) store(out + n * BLOCK, part[n]);
}

// Sixteen keys, `shift` bytes from their places, become columns of out [d][BLOCK]; pairs: of [d/2][BLOCK].
template <int type>
void lay_keys(const Place* at, int64_t shift, int64_t dim, float* out) {
  constexpr int64_t size = 4 / words_of(type);
  int64_t bytes = dim * size_of(type), whole = bytes / 16 * 16;
  I words[4];
  for (int64_t byte = 0; byte < whole; byte += 16) {
    turn(at, shift + byte, words);
    for (int w = 0; w < 4; w++) spread_rows<type>(words[w], out + (byte / size + w * (4 / size)) * BLOCK);
  }
  if (whole == bytes) return;
  char tail[LANES][16] = {};  // int8 with d = 8 mod 16
  Place copied[LANES];
  for (int i = 0; i < LANES; i++) {
    std::memcpy(tail[i], at[i].key + shift + whole, bytes - whole);
    copied[i] = {tail[i], nullptr};
  }
  turn(copied, 0, words);
  for (int w = 0; w < (bytes - whole) / 4; w++)
    spread_rows<type>(words[w], out + (whole / size + w * (4 / size)) * BLOCK);
}

template <int type>
inline F load_value(const char* row, int64_t i) {
  if constexpr (type == INT8) {
    return load_i8(reinterpret_cast<const int8_t*>(row) + i);
  } else {
    return load_as(row, i, held(type));
  }
}

// The values of keys from .. end - 1 become rows of out [BLOCK][padded(d)]; the padding is 0.
template <int type>
void lay_values(const Place* at, int64_t shift, int from, int end, int64_t dim, float* out) {
  int64_t width = padded(dim), whole = dim / LANES * LANES;
  for (int j = from; j < end; j++) {
    const char* row = at[j].value + shift;
    for (int64_t i = 0; i < whole; i += LANES) store(out + j * width + i, load_value<type>(row, i));
    if (whole == dim) continue;
    alignas(64) char tail[64] = {};
    constexpr int64_t size = size_of(type);
    std::memcpy(tail, row + whole * size, (dim - whole) * size);
    store(out + j * width + whole, load_value<type>(tail, 0));
  }
}

// How a row of a kv head becomes int8: scale = max|x| / 127 in float32, q = x / scale rounded to the nearest
// even. All zero, or so near that the scale is 0: q = 0. Where a number is not finite: scale NaN, q = 0.
inline void quantize(const void* x, int64_t from, int type, int64_t dim, int8_t* out, float* scale) {
  F most = zero(), bad = zero();
  for (int64_t i = 0; i < dim; i += LANES) {
    F part = load_as(x, from + i, type, lanes_of(dim - i));
    most = max(abs(part), most);
    bad = fma(part, zero(), bad);
  }
  *scale = std::isnan(sum(bad)) ? NAN : largest(most) / 127.0f;
  F divisor = set1(*scale == 0.0f ? INFINITY : *scale);  // NaN and 0 give 0 below
  for (int64_t i = 0; i < dim; i += LANES) {
    int many = lanes_of(dim - i);
    F q = div(load_as(x, from + i, type, many), divisor);
    int8_t part[LANES];
    q = round(where_nan(q, zero(), q));
    store_i8(part, to_int(min(max(q, set1(-127.0f)), set1(127.0f))));
    std::memcpy(out + i, part, many);
  }
}

// The new keys and values of one token, into their slot.
inline void store_token(const Attention& a, int64_t token) {
  int64_t size = bytes_of(a.type), width = bytes_of(a.pool_type), place = a.slots[token] * a.kv_heads;
  auto key_pool = static_cast<char*>(a.key_pool) + place * a.dim * width;
  auto value_pool = static_cast<char*>(a.value_pool) + place * a.dim * width;
  if (a.pool_type != INT8) {
    std::memcpy(key_pool, static_cast<const char*>(a.k) + token * a.k_stride * size,
                a.kv_heads * a.dim * size);
    std::memcpy(value_pool, static_cast<const char*>(a.v) + token * a.v_stride * size,
                a.kv_heads * a.dim * size);
    return;
  }
  for (int64_t h = 0; h < a.kv_heads; h++) {
    auto keys = reinterpret_cast<int8_t*>(key_pool) + h * a.dim;
    auto values = reinterpret_cast<int8_t*>(value_pool) + h * a.dim;
    quantize(a.k, token * a.k_stride + h * a.dim, a.type, a.dim, keys, a.key_scales + place + h);
    quantize(a.v, token * a.v_stride + h * a.dim, a.type, a.dim, values, a.value_scales + place + h);
  }
}

inline void store_all(const Attention& a) {
  constexpr int64_t AT_ONCE = 64;  // tokens of a task
  parallel((a.tokens + AT_ONCE - 1) / AT_ONCE, [&](int64_t task, int) {
    int64_t end = std::min(a.tokens, (task + 1) * AT_ONCE);
    for (int64_t token = task * AT_ONCE; token < end; token++) store_token(a, token);
  });
}

}  // namespace
}  // namespace ONEROOF_VARIANT
}  // namespace oneroof
