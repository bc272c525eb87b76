// The inner loops of attention: scores of rows with keys, weights from scores, sums of values by weights.
//
// A row's scores are chains over d, its sums chains over keys, whatever the tile; so every form gives the
// same bits.

#pragma once

#include <algorithm>
#include <type_traits>

#include "abi.h"
#include "keys.h"
#include "simd.h"

namespace oneroof {
namespace ONEROOF_VARIANT {
namespace {

constexpr int TILE = 6;            // rows whose sums stay in registers beside a laid block
constexpr int FEW = WIDE ? 8 : 2;  // ... and beside a block that is read straight from memory
constexpr int MOST_TILE = 8;
constexpr int ALONE = WIDE ? 2 : 8;  // up to so many, sixteen keys at once: more would crowd the first level's sets

// Registers of columns beside `rows` rows: as many sums as there is room for, where rows are few.
constexpr int width_of(int rows) { return WIDE || rows == 1 ? 4 : rows == 2 ? 2 : 1; }

// The memory of what comes next, asked for a few lines at a time while a block is worked on.
struct Ahead {
  struct Part {
    const Place* at;
    int keys;       // and as many values, after them
    int64_t lines;  // of 64 bytes that a key or a value has
  };
  Part parts[2] = {};
  int count = 0, part = 0, i = -1;  // i: the key, then the value, of the part that is being fetched
  int each = 0;                     // lines at a time
  const char* line = nullptr;
  const char* last = nullptr;

  void add(const Place* at, int keys, int64_t lines) { parts[count++] = {at, keys, lines}; }
  int64_t all() const {  // lines
    int64_t sum = 0;
    for (int p = 0; p < count; p++) sum += 2 * parts[p].keys * parts[p].lines;
    return sum;
  }
  void fetch() {
    for (int n = 0; n < each; n++) {
      if (line == last && !turn()) return;
      _mm_prefetch(line, _MM_HINT_T1);
      line += 64;
    }
  }
  bool turn() {  // on to the next key or value
    if (++i == 2 * parts[part].keys) part++, i = 0;
    if (part == count) {
      each = 0;
      return false;
    }
    const Part& p = parts[part];
    line = i < p.keys ? p.at[i].key : p.at[i - p.keys].value;
    last = line + 64 * p.lines;
    return true;
  }
};

// 2^x for x <= 0, NaN for NaN, 0 below -126; 2^0 is exactly 1. Relative error below 2e-7.
inline F power2(F x) {
#if defined(__AVX512F__)
  F n = round(x);
#else
  F n = round(max(set1(-126.0f), x));
#endif
  F r = sub(x, n);
  F p = set1(0.001326472614891827f);
  p = fma(p, r, set1(0.009671512991189957f));
  p = fma(p, r, set1(0.05550733581185341f));
  p = fma(p, r, set1(0.24022242426872253f));
  p = fma(p, r, set1(0.6931470036506653f));
  p = fma(p, r, set1(1.0f));
#if defined(__AVX512F__)
  __mmask16 seen = _mm512_cmp_ps_mask(x.v, _mm512_set1_ps(-126.0f), _CMP_NLT_UQ);
  return {_mm512_maskz_scalef_ps(seen, p.v, n.v)};
#else
  return where_less(x, set1(-126.0f), zero(), mul(p, power_of_two(to_int(n))));
#endif
}
inline float power2(float x) {
  alignas(64) float out[LANES];
  store(out, power2(set1(x)));
  return out[0];
}

// A link of a score's chain: a number of q and sixteen keys, or a pair and sixteen pairs.
template <bool pairs>
inline F link(F q, F keys, F score) {
#if defined(__AVX512BF16__)
  if constexpr (pairs) return {_mm512_dpbf16_ps(score.v, (__m512bh)q.v, (__m512bh)keys.v)};
#endif
  static_assert(!pairs || WIDE);
  return fma(q, keys, score);
}

// out[r] = q[r] . keys, for `rows` rows and `groups` registers of keys [d][BLOCK], or of pairs, half as many
template <bool pairs, int rows, int groups>
inline void score_laid(const float* q, int64_t dim, const float* keys, float* out, Ahead& next) {
  Ahead ahead = next;
  F sums[rows][groups];
#pragma GCC unroll 8
  for (int r = 0; r < rows; r++) {
#pragma GCC unroll 4
    for (int g = 0; g < groups; g++) sums[r][g] = zero();
  }
  for (int64_t i = 0; i < dim; i++) {
    ahead.fetch();
    F k[groups];
#pragma GCC unroll 4
    for (int g = 0; g < groups; g++) k[g] = load(keys + i * BLOCK + g * LANES);
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) {
      F one = set1(q[r * dim + i]);
#pragma GCC unroll 4
      for (int g = 0; g < groups; g++) sums[r][g] = link<pairs>(one, k[g], sums[r][g]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < rows; r++) {
#pragma GCC unroll 4
    for (int g = 0; g < groups; g++) store(out + r * BLOCK + g * LANES, sums[r][g]);
  }
  next = ahead;
}

// The same from the places of the keys, which are turned on the way
template <int type, int rows, int groups>
inline void score_straight(const float* q, int64_t dim, const Place* at, int64_t shift, float* out,
                           Ahead& next) {
  constexpr int parts = words_of(type);
  int64_t bytes = dim * size_of(type), row = bytes / 4 * parts;  // of q, in words
  Ahead ahead = next;
  F sums[rows][groups];
#pragma GCC unroll 8
  for (int r = 0; r < rows; r++) {
#pragma GCC unroll 4
    for (int g = 0; g < groups; g++) sums[r][g] = zero();
  }
  for (int64_t byte = 0; byte < bytes; byte += 16, q += 4 * parts) {
    ahead.fetch();
    I words[groups][4];
#pragma GCC unroll 4
    for (int g = 0; g < groups; g++) turn(at + g * LANES, shift + byte, words[g]);
#pragma GCC unroll 4
    for (int w = 0; w < 4; w++) {
      F k[groups][parts];
#pragma GCC unroll 4
      for (int g = 0; g < groups; g++) spread<type>(words[g][w], k[g]);
#pragma GCC unroll 4
      for (int n = 0; n < parts; n++) {
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) {
          F one = set1(q[r * row + w * parts + n]);
#pragma GCC unroll 4
          for (int g = 0; g < groups; g++) sums[r][g] = link<type == PAIRS>(one, k[g][n], sums[r][g]);
        }
      }
    }
  }
  next = ahead;
#pragma GCC unroll 8
  for (int r = 0; r < rows; r++) {
#pragma GCC unroll 4
    for (int g = 0; g < groups; g++) store(out + r * BLOCK + g * LANES, sums[r][g]);
  }
}

// sums[r] = sums[r] * factor[r] + the weights of keys from .. end - 1 times their values, one after the other
template <int rows, int columns, class Values>
inline void weigh_rows(const float* weights, Values values, int64_t width, int from, int end,
                       const float* factor, float* sums, Ahead& next) {
  Ahead ahead = next;
  F s[rows][columns];
#pragma GCC unroll 8
  for (int r = 0; r < rows; r++) {
#pragma GCC unroll 4
    for (int c = 0; c < columns; c++) s[r][c] = mul(load(sums + r * width + c * LANES), set1(factor[r]));
  }
  for (int j = from; j < end; j++) {
    ahead.fetch();
    F v[columns];
#pragma GCC unroll 4
    for (int c = 0; c < columns; c++) v[c] = values(j, c);
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) {
      F one = set1(weights[r * BLOCK + j]);
#pragma GCC unroll 4
      for (int c = 0; c < columns; c++) s[r][c] = fma(one, v[c], s[r][c]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < rows; r++) {
#pragma GCC unroll 4
    for (int c = 0; c < columns; c++) store(sums + r * width + c * LANES, s[r][c]);
  }
  next = ahead;
}

// Calls body(integral_constant<rows>) for rows in 1 .. most.
template <int most, class Body>
inline void with_rows(int rows, Body&& body) {
  if constexpr (most > 1) {
    if (rows < most) return with_rows<most - 1>(rows, body);
  }
  body(std::integral_constant<int, most>());
}

// A block that was laid as float32, for many rows.
template <bool pairs>
struct Laid {
  const float* keys;    // [d][BLOCK]; pairs: [d/2][BLOCK]
  const float* values;  // [BLOCK][width]
  int64_t dim, width;

  void score(int rows, const float* q, int groups, float* out, Ahead& ahead) const {
    int64_t links = pairs ? dim / 2 : dim;
    with_rows<TILE>(rows, [&](auto n) {
      constexpr int r = decltype(n)::value, wide = width_of(r);
      int g = 0;
      for (; g + wide <= groups; g += wide) {
        score_laid<pairs, r, wide>(q, links, keys + g * LANES, out + g * LANES, ahead);
      }
      for (; g < groups; g++) score_laid<pairs, r, 1>(q, links, keys + g * LANES, out + g * LANES, ahead);
    });
  }

  void weigh(int rows, const float* weights, int from, int end, const float* factor, float* sums,
             Ahead& ahead) const {
    with_rows<TILE>(rows, [&](auto n) {
      constexpr int r = decltype(n)::value, wide = width_of(r), half = (wide + 1) / 2;
      auto part = [&](int64_t c) {
        return [this, c](int j, int i) { return load(values + j * width + c + i * LANES); };
      };
      int64_t c = 0;
      for (; c + wide * LANES <= width; c += wide * LANES) {
        weigh_rows<r, wide>(weights, part(c), width, from, end, factor, sums + c, ahead);
      }
      for (; c + half * LANES <= width; c += half * LANES) {
        weigh_rows<r, half>(weights, part(c), width, from, end, factor, sums + c, ahead);
      }
      for (; c < width; c += LANES)
        weigh_rows<r, 1>(weights, part(c), width, from, end, factor, sums + c, ahead);
    });
  }
};

// A block as it lies in memory, for the few rows of a tile that it is looked at by; d is a multiple of LANES.
template <int type>
struct Straight {
  const Place* at;
  int64_t shift, dim;  // bytes to the head; d

  void score(int rows, const float* q, int groups, float* out, Ahead& ahead) const {
    with_rows<FEW>(rows, [&](auto n) {
      constexpr int r = decltype(n)::value, wide = r > ALONE ? 2 : 1;
      int g = 0;
      for (; g + wide <= groups; g += wide) {
        score_straight<type, r, wide>(q, dim, at + g * LANES, shift, out + g * LANES, ahead);
      }
      for (; g < groups; g++)
        score_straight<type, r, 1>(q, dim, at + g * LANES, shift, out + g * LANES, ahead);
    });
  }

  void weigh(int rows, const float* weights, int from, int end, const float* factor, float* sums,
             Ahead& ahead) const {
    with_rows<FEW>(rows, [&](auto n) {
      constexpr int r = decltype(n)::value, wide = !WIDE ? 1 : r <= 4 ? 4 : 2;
      auto part = [&](int64_t c) {
        return [this, c](int j, int i) { return load_value<type>(at[j].value + shift, c + i * LANES); };
      };
      int64_t c = 0;
      for (; c + wide * LANES <= dim; c += wide * LANES) {
        weigh_rows<r, wide>(weights, part(c), dim, from, end, factor, sums + c, ahead);
      }
      for (; c < dim; c += LANES) weigh_rows<r, 1>(weights, part(c), dim, from, end, factor, sums + c, ahead);
    });
  }
};

}  // namespace
}  // namespace ONEROOF_VARIANT
}  // namespace oneroof
