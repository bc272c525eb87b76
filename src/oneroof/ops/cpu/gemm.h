// Products of plain matrices, of any strides: C = A B, forward (x W^T) and back (dy W, dy^T x).
//
// Rows of A are cut into bands, and a band is packed once, for all threads, in tiles as high as the registers
// allow. A task is a band times some columns: it packs its part of B, block by block of K, into its own
// second-level cache. An output is one chain of multiply-adds in the order of K: threads, bands and the other
// rows do not change it.

#pragma once

#include <algorithm>
#include <utility>

#include "abi.h"
#include "pool.h"
#include "simd.h"
#include "training.h"

namespace oneroof {
namespace ONEROOF_VARIANT {
namespace {

constexpr int TILE = WIDE ? 12 : 6;                // rows of a register tile
constexpr int PANEL = WIDE ? 2 * LANES : LANES;    // columns of one
constexpr int64_t BLOCK = 512;                     // words of K packed of B at once: a float, or a pair
constexpr int64_t BAND = 64 * TILE;                // rows of a band at most
constexpr int64_t COLUMNS = 256;                   // of a task at most
constexpr int64_t SOME = 16;                       // steps packed in turn where lanes lie side by side: for
                                                   // all lanes, so that memory is read as it lies
constexpr int64_t SPAN = 8 * BLOCK;                // words of K packed of A at once
constexpr int64_t HELD = int64_t{32} << 20;        // bytes of A packed at once, about

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// ----------------------------------------------------------------------------------------------- the tile

#if defined(__AVX512F__)
using Register = __m512;
inline Register spread(const float* p) { return _mm512_set1_ps(*p); }
inline Register take(const float* p) { return _mm512_loadu_ps(p); }
inline void put(float* p, Register a) { _mm512_storeu_ps(p, a); }
#else
using Register = F;
inline Register spread(const float* p) { return set1(*p); }
inline Register take(const float* p) { return load(p); }
inline void put(float* p, Register a) { store(p, a); }
#endif

#if defined(__AVX512BF16__)
constexpr bool HAS_PAIRS = true;  // two bfloat16 are one link of the chain
template <bool pairs>
inline Register link(Register a, Register b, Register sum) {
  return pairs ? _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b) : _mm512_fmadd_ps(a, b, sum);
}
#else
constexpr bool HAS_PAIRS = false;
template <bool pairs>
inline Register link(Register a, Register b, Register sum) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(a, b, sum);
#else
  return fma(a, b, sum);
#endif
}
#endif

// sums[M][N * 16] += a[words][TILE] (its first M) * b[words][N * 16]; they begin at 0 where `fresh`.
template <bool pairs, int M, int N>
void multiply_tile(const float* a, const float* b, int64_t words, float* sums, bool fresh) {
  Register sum[M][N];
#pragma GCC unroll 16
  for (int m = 0; m < M; m++) {
#pragma GCC unroll 2
    for (int n = 0; n < N; n++) sum[m][n] = fresh ? Register{} : take(sums + (m * N + n) * LANES);
  }
  for (int64_t w = 0; w < words; w++, a += TILE, b += N * LANES) {
    Register column[N];
#pragma GCC unroll 2
    for (int n = 0; n < N; n++) column[n] = take(b + n * LANES);
#pragma GCC unroll 16
    for (int m = 0; m < M; m++) {
      Register row = spread(a + m);
#pragma GCC unroll 2
      for (int n = 0; n < N; n++) sum[m][n] = link<pairs>(row, column[n], sum[m][n]);
    }
  }
#pragma GCC unroll 16
  for (int m = 0; m < M; m++) {
#pragma GCC unroll 2
    for (int n = 0; n < N; n++) put(sums + (m * N + n) * LANES, sum[m][n]);
  }
}

using MultiplyTile = void (*)(const float*, const float*, int64_t, float*, bool);

template <bool pairs, int N, int... M>
inline MultiplyTile tile_of(int rows, std::integer_sequence<int, M...>) {
  static constexpr MultiplyTile all[] = {multiply_tile<pairs, M + 1, N>...};
  return all[rows - 1];
}

inline MultiplyTile tile_of(bool pairs, int rows, int width) {
  constexpr auto each = std::make_integer_sequence<int, TILE>();
  if (width == LANES) return pairs ? tile_of<HAS_PAIRS, 1>(rows, each) : tile_of<false, 1>(rows, each);
  return pairs ? tile_of<HAS_PAIRS, 2>(rows, each) : tile_of<false, 2>(rows, each);
}

// ------------------------------------------------------------------------------------------------ packing

#if defined(__AVX512F__)
inline void transpose(F (&r)[LANES]) {
  __m512 t[LANES];
  for (int i = 0; i < LANES; i += 2) {
    t[i] = _mm512_unpacklo_ps(r[i].v, r[i + 1].v);
    t[i + 1] = _mm512_unpackhi_ps(r[i].v, r[i + 1].v);
  }
  __m512 u[LANES];
  for (int i = 0; i < LANES; i += 4) {
    for (int h = 0; h < 2; h++) {
      __m512d a = _mm512_castps_pd(t[i + h]), b = _mm512_castps_pd(t[i + h + 2]);
      u[i + 2 * h] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
      u[i + 2 * h + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
    }
  }
  for (int j = 0; j < 4; j++) {  // step 4q + j: quarter q of each
    __m512 a = _mm512_shuffle_f32x4(u[j], u[j + 4], 0x88), b = _mm512_shuffle_f32x4(u[j], u[j + 4], 0xDD);
    __m512 c = _mm512_shuffle_f32x4(u[j + 8], u[j + 12], 0x88);
    __m512 d = _mm512_shuffle_f32x4(u[j + 8], u[j + 12], 0xDD);
    r[j].v = _mm512_shuffle_f32x4(a, c, 0x88);
    r[j + 4].v = _mm512_shuffle_f32x4(b, d, 0x88);
    r[j + 8].v = _mm512_shuffle_f32x4(a, c, 0xDD);
    r[j + 12].v = _mm512_shuffle_f32x4(b, d, 0xDD);
  }
}
#else
inline void transpose8(__m256* r) {
  __m256 t[8], u[8];
  for (int i = 0; i < 8; i += 2) {
    t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
    t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
  }
  for (int i = 0; i < 8; i += 4) {
    for (int h = 0; h < 2; h++) {
      __m256d a = _mm256_castps_pd(t[i + h]), b = _mm256_castps_pd(t[i + h + 2]);
      u[i + 2 * h] = _mm256_castpd_ps(_mm256_unpacklo_pd(a, b));
      u[i + 2 * h + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(a, b));
    }
  }
  for (int j = 0; j < 4; j++) {
    r[j] = _mm256_permute2f128_ps(u[j], u[j + 4], 0x20);
    r[j + 4] = _mm256_permute2f128_ps(u[j], u[j + 4], 0x31);
  }
}
inline void transpose(F (&r)[LANES]) {
  __m256 low[LANES], high[LANES];
  for (int i = 0; i < LANES; i++) low[i] = r[i].lo, high[i] = r[i].hi;
  for (int half = 0; half < LANES; half += 8) transpose8(low + half), transpose8(high + half);
  for (int i = 0; i < 8; i++) {
    r[i] = {low[i], low[i + 8]};
    r[i + 8] = {high[i], high[i + 8]};
  }
}
#endif

// A matrix of lanes (rows of A, columns of B) and steps (K), one of whose strides is 1.
struct Source {
  const void* data;
  int64_t lane_stride, step_stride;
  const int64_t* lane_index;
  const int64_t* step_index;
  int type;

  int64_t lane(int64_t i) const { return (lane_index ? lane_index[i] : i) * lane_stride; }
  int64_t step(int64_t k) const { return (step_index ? step_index[k] : k) * step_stride; }
  bool by_step() const { return step_stride == 1 && !step_index; }  // steps lie side by side; else lanes do
};

template <int type>
inline F some_of(const Source& s, int64_t at, int n) {
#if defined(__AVX512F__)
  if (type != FLOAT32) {
    __m256i half = _mm256_maskz_loadu_epi16(first(n), static_cast<const uint16_t*>(s.data) + at);
    if (type == FLOAT16) return {_mm512_cvtph_ps(half)};
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16))};
  }
#endif
  return n >= LANES ? load_as(s.data, at, type) : load_as(s.data, at, type, n);
}

inline F pairs_of_row(const Source& s, int64_t at, int64_t n) {  // n numbers side by side, as words
  auto p = static_cast<const uint16_t*>(s.data) + at;
  if (n >= 2 * LANES) return as_float(load_bytes(p));
  alignas(64) uint16_t part[2 * LANES] = {};
  std::memcpy(part, p, n * sizeof(uint16_t));
  return as_float(load_bytes(part));
}

inline F pairs_of_rows(F first, F second) {  // two rows of bfloat16, widened: the first in the low halves
  return as_float(add(right_unsigned<16>(as_int(first)), as_int(second)));
}

// Lanes first .. first + count (at most 16) of steps begin .. end into out[words][width]. Lanes that are not
// there are 0 as far as `width` goes, and so is the second of a pair at the end.
template <int type, bool pairs>
void pack_as(const Source& s, int64_t first, int count, int64_t begin, int64_t end, float* out, int width) {
  constexpr int per_word = pairs ? 2 : 1;
  int kept = std::min(width, LANES);
  int64_t words = ceil_div(end - begin, per_word);
  auto write = [&](int64_t w, F lanes) {  // what is written too far is written over by the next
    float* p = out + w * width;
    w + LANES < words || kept == LANES ? store(p, lanes) : store(p, lanes, kept);
  };
  if (s.by_step()) {
    int64_t at[LANES];
    for (int i = 0; i < count; i++) at[i] = s.lane(first + i) + begin;
    for (int64_t w = 0; w < words; w += LANES) {
      int64_t left = end - begin - w * per_word;
      int some = static_cast<int>(std::min<int64_t>(left, LANES * per_word));
      F r[LANES] = {};
      for (int i = 0; i < count; i++) {
        int64_t from = at[i] + w * per_word;
        r[i] = pairs ? pairs_of_row(s, from, some) : some_of<type>(s, from, some);
      }
      transpose(r);
      for (int j = 0; j < std::min<int64_t>(LANES, words - w); j++) write(w + j, r[j]);
    }
    return;
  }
  for (int64_t w = 0; w < words; w++) {
    int64_t k = begin + w * per_word;
    F lanes = some_of<type>(s, s.step(k) + first, count);
    if (pairs) {
      lanes = pairs_of_rows(lanes, k + 1 < end ? some_of<type>(s, s.step(k + 1) + first, count) : zero());
    }
    write(w, lanes);
  }
}

inline void pack_lanes(const Source& s, bool pairs, int64_t first, int count, int64_t begin, int64_t end,
                       float* out, int width) {
  if (pairs) return pack_as<BFLOAT16, true>(s, first, count, begin, end, out, width);
  switch (s.type) {
    case FLOAT32: return pack_as<FLOAT32, false>(s, first, count, begin, end, out, width);
    case BFLOAT16: return pack_as<BFLOAT16, false>(s, first, count, begin, end, out, width);
    default: return pack_as<FLOAT16, false>(s, first, count, begin, end, out, width);
  }
}

// ----------------------------------------------------------------------------------------------- the work

// Rows and steps of one group that are packed together.
struct Piece {
  int64_t group, row, rows;  // rows of A; in the group's C where cut by steps
  int64_t begin, end;        // steps
  int64_t words;             // of K
  bool first, last;          // of the steps of its rows: not both where they are many
  int64_t packed;            // floats before it in the packed A

  int64_t tiles() const { return ceil_div(rows, TILE); }
  int64_t size() const { return tiles() * TILE * words; }
  bool whole() const { return first && last; }
};

struct Plan {
  const Gemm& g;
  bool pairs;
  Source a, b;
  int64_t columns;  // of a task
  float* packed = nullptr;
  float* sums = nullptr;  // of a piece that is not whole

  explicit Plan(const Gemm& gemm) : g(gemm) {
    pairs = HAS_PAIRS && g.a_type == BFLOAT16 && g.b_type == BFLOAT16;
    const int64_t *rows = g.cut == ROWS ? g.a_index : nullptr, *steps = g.cut == STEPS ? g.a_index : nullptr;
    a = {g.a, g.a_row, g.a_step, rows, steps, g.a_type};
    b = {g.b, g.b_column, g.b_step, nullptr, g.cut == STEPS ? g.b_index : nullptr, g.b_type};
    columns = COLUMNS;
  }

  int64_t words(int64_t steps) const { return pairs ? ceil_div(steps, 2) : steps; }
};

// fn(piece) for all of them, in order.
template <class Fn>
inline void each_piece(const Plan& plan, const Fn& fn) {
  const Gemm& g = plan.g;
  for (int64_t group = 0; group < g.groups; group++) {
    int64_t from = g.bounds ? g.bounds[group] : 0, to = g.bounds ? g.bounds[group + 1] : 0;
    int64_t row = g.cut == ROWS ? from : 0, rows = (g.cut == ROWS ? to : g.rows) - row;
    int64_t begin = g.cut == STEPS ? from : 0, end = g.cut == STEPS ? to : g.steps;
    int64_t bands = ceil_div(rows, BAND), height = bands ? ceil_div(ceil_div(rows, bands), TILE) * TILE : 0;
    int64_t span = plan.pairs ? 2 * SPAN : SPAN;
    for (int64_t r = 0; r < rows; r += height) {
      for (int64_t k = begin; k == begin || k < end; k += span) {
        int64_t stop = std::min(end, k + span);
        fn(Piece{group, row + r, std::min(height, rows - r), k, stop, plan.words(stop - k), k == begin,
                 stop == end, 0});
      }
    }
  }
}

inline void pack_a(const Plan& plan, const Piece& p, int64_t tile, int64_t tiles) {
  int64_t stride = plan.a.by_step() ? p.end - p.begin : SOME;
  for (int64_t k = p.begin; k < p.end; k += stride) {
    for (int64_t t = tile; t < tile + tiles; t++) {
      int64_t first = t * TILE;
      int count = static_cast<int>(std::min<int64_t>(TILE, p.rows - first));
      float* out = plan.packed + p.packed + (t * p.words + plan.words(k - p.begin)) * TILE;
      pack_lanes(plan.a, plan.pairs, p.row + first, count, k, std::min(p.end, k + stride), out, TILE);
    }
  }
}

// A tile's sums to where they belong.
inline void write_tile(const Gemm& g, const Piece& p, const float* sums, int64_t row, int rows,
                       int64_t column, int64_t columns, int width) {
  int64_t to = (g.cut == STEPS ? p.group * g.c_group : 0) + row * g.c_row + column;
  for (int64_t c = 0; c < columns; c += LANES) {
    int n = lanes_of(columns - c);
    F bias = g.bias ? load_as(g.bias, column + c, g.c_type, n) : zero();
    for (int m = 0; m < rows; m++) {
      F y = load(sums + m * width + c);
      if (g.bias) y = add(y, bias);
      int64_t at = to + m * g.c_row + c;
      n == LANES ? store_as(g.c, at, g.c_type, y) : store_as(g.c, at, g.c_type, y, n);
    }
  }
}

inline int width_of(int64_t left) { return left <= LANES ? LANES : PANEL; }  // of a panel

// Columns of B over steps begin .. end into panels of `block` words.
inline void pack_b(const Source& b, bool pairs, int64_t column, int64_t columns, int64_t begin, int64_t end,
                   int64_t block, float* out) {
  int64_t per_word = pairs ? 2 : 1, some = b.by_step() ? end - begin : SOME;
  for (int64_t k = begin; k < end; k += some) {
    int64_t stop = std::min(end, k + some), word = (k - begin) / per_word;
    for (int64_t c = 0; c < columns; c += PANEL) {
      int width = width_of(columns - c);
      for (int64_t half = 0; half < width; half += LANES) {
        int count = lanes_of(columns - c - half);
        pack_lanes(b, pairs, column + c + half, count, k, stop, out + c * block + word * width + half, width);
      }
    }
  }
}

inline void compute(const Plan& plan, const Piece& p, int64_t column, int64_t columns, int thread) {
  const Gemm& g = plan.g;
  int64_t block = std::min(BLOCK, std::max<int64_t>(p.words, 1)), wide = ceil_div(columns, LANES) * LANES;
  bool once = p.whole() && p.words <= block;  // a tile's sums are done with before the next begins
  int64_t held = once ? 1 : p.whole() ? p.tiles() : 0;
  auto memory = static_cast<float*>(thread_scratch(thread, (block + held * TILE) * wide * sizeof(float)));
  float* sums = p.whole() ? memory + block * wide : plan.sums + column * p.tiles() * TILE;
  Source b = plan.b;
  int64_t skip = (g.cut == ROWS ? p.group : 0) * g.b_group;
  b.data = static_cast<const uint8_t*>(b.data) + skip * (g.b_type == FLOAT32 ? 4 : 2);
  for (int64_t w = 0; w == 0 || w < p.words; w += block) {
    int64_t words = std::min(block, p.words - w), begin = p.begin + (plan.pairs ? 2 * w : w);
    int64_t end = std::min(p.end, begin + (plan.pairs ? 2 * words : words));
    pack_b(b, plan.pairs, column, columns, begin, end, block, memory);
    for (int64_t t = 0; t < p.tiles(); t++) {
      const float* a = plan.packed + p.packed + (t * p.words + w) * TILE;
      int rows = static_cast<int>(std::min<int64_t>(TILE, p.rows - t * TILE));
      for (int64_t c = 0; c < columns; c += PANEL) {
        int width = width_of(columns - c);
        float* mine = sums + ((once ? 0 : t) * wide + c) * TILE;
        tile_of(plan.pairs, rows, width)(a, memory + c * block, words, mine, p.first && w == 0);
        if (p.last && w + block >= p.words) {
          int64_t there = std::min<int64_t>(width, columns - c);
          write_tile(g, p, mine, p.row + t * TILE, rows, column + c, there, width);
        }
      }
    }
  }
}

// Columns of a task: wide ones pack less, narrow ones keep all threads at work to the end.
inline int64_t columns_of(int64_t pieces, int64_t columns) {
  int64_t width = COLUMNS, wanted = 8 * thread_count();
  while (width > 2 * PANEL && pieces * ceil_div(columns, width) < wanted) width /= 2;
  return width;
}

inline void run(Plan& plan, const Piece* pieces, int64_t count) {
  int64_t size = pieces[count - 1].packed + pieces[count - 1].size();
  plan.packed = static_cast<float*>(call_scratch(0, (size + LANES) * sizeof(float)));
  plan.columns = columns_of(count, plan.g.columns);
  if (!pieces[0].whole()) {
    int64_t sums = pieces[0].tiles() * TILE * ceil_div(plan.g.columns, LANES) * LANES;
    plan.sums = static_cast<float*>(call_scratch(2, sums * sizeof(float)));
  }
  constexpr int64_t some = 16;  // tiles
  int64_t parts = 0;
  for (int64_t i = 0; i < count; i++) parts = std::max(parts, ceil_div(pieces[i].tiles(), some));
  parallel(count * parts, [&](int64_t task, int) {
    const Piece& p = pieces[task / parts];
    int64_t tile = task % parts * some;
    if (tile < p.tiles()) pack_a(plan, p, tile, std::min(some, p.tiles() - tile));
  });
  int64_t across = ceil_div(plan.g.columns, plan.columns);
  parallel(count * across, [&](int64_t task, int thread) {
    int64_t column = task % across * plan.columns;
    compute(plan, pieces[task / across], column, std::min(plan.columns, plan.g.columns - column), thread);
  });
}

inline void multiply(const Gemm& g) {
  Call call;
  Plan plan(g);
  int64_t number = 0;
  each_piece(plan, [&](const Piece&) { number++; });
  if (number == 0 || g.columns == 0) return;
  auto pieces = static_cast<Piece*>(call_scratch(1, number * sizeof(Piece)));
  int64_t count = 0, size = 0;
  each_piece(plan, [&](Piece p) {
    bool full = (size + p.size()) * static_cast<int64_t>(sizeof(float)) > HELD;
    if (count > 0 && (full || !p.whole() || !pieces[0].whole())) {  // what is not whole goes alone
      run(plan, pieces, count);
      count = size = 0;
    }
    p.packed = size;
    size += p.size();
    pieces[count++] = p;
  });
  run(plan, pieces, count);
}

}  // namespace
}  // namespace ONEROOF_VARIANT
}  // namespace oneroof
