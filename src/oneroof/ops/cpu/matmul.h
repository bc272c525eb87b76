// Products with a weight in panels: any number of rows over one layout, and one order of every sum.
//
// Few rows: weights are decoded in registers as they stream by. Many: a block of a panel is decoded once into the
// second-level cache and multiplied with tile after tile of rows. Both run the chains of panels.h.

#pragma once

#include <algorithm>

#include "panels.h"
#include "pool.h"

namespace oneroof {
namespace ONEROOF_VARIANT {
namespace {

constexpr int TILE = WIDE ? 12 : 6;      // rows of a register tile
constexpr int COLUMNS = WIDE ? 2 : 1;    // panels of one
constexpr int MOST_PANELS = 32;          // of a task
constexpr int64_t BLOCK = 512;           // inputs decoded at once
constexpr int64_t EXACT = 1024;          // products of two bytes whose sum a float32 holds exactly
constexpr int64_t ROWS = 256;            // rows of a task at most

// How x is multiplied. FLOATS: as float32. PAIRS: as two bfloat16 at once. BYTES: as signed bytes with a scale, summed
// exactly. PLANES: as whole numbers of 16 bits, an upper and a lower byte each, likewise: what is lost is less than
// bfloat16 loses of its largest values. INTEGERS: as BYTES, each byte as a float32, for want of an instruction.
enum class Mode { FLOATS, PAIRS, BYTES, PLANES, INTEGERS };

constexpr float LARGEST = 127.0f;              // a byte
constexpr float LARGEST_OF_TWO = 32639.0f;     // 127 * 256 + 127

// x as the loops want it: rows `stride` words of 32 bits apart.
struct Rows {
  Mode mode;
  const void* data;
  int64_t stride;       // words
  int64_t plane;        // words of one plane
  const float* scale;   // [rows] where x was made whole
  const int32_t* sums;  // [rows][planes][groups of the weight]: what a sum of products begins with

  const float* floats(int64_t row) const { return static_cast<const float*>(data) + row * stride; }
  const uint32_t* words(int64_t row) const { return static_cast<const uint32_t*>(data) + row * stride; }
  Rows from(int64_t row, int64_t row_sums) const {
    return {mode, static_cast<const uint32_t*>(data) + row * stride, stride, plane, scale ? scale + row : nullptr,
            sums ? sums + row * row_sums : nullptr};
  }
};

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct Layout {
  int64_t panels, groups, group, inputs, bytes, panel_bytes;  // inputs, bytes: of a step

  explicit Layout(const Weight& w) {
    static constexpr int64_t INPUTS[] = {1, 2, 1, 4, 8}, BYTES[] = {64, 64, 32, 64, 64};
    panels = ceil_div(w.rows, LANES);
    group = w.group ? w.group : w.dim;
    groups = w.scale && w.group ? ceil_div(w.dim, w.group) : 1;
    inputs = INPUTS[w.kind], bytes = BYTES[w.kind];
    panel_bytes = ceil_div(w.dim, inputs) * bytes;
  }
};

inline Mode mode_of(const Weight& w, int x_type, int input) {
#if defined(__AVX512VNNI__)
  if (w.kind >= INT8) return input == AS_IT_IS ? Mode::PLANES : Mode::BYTES;
#else
  if (input != AS_IT_IS) return Mode::INTEGERS;
#endif
#if defined(__AVX512BF16__)
  if (w.kind == BFLOAT16 && x_type == BFLOAT16) return Mode::PAIRS;
#endif
  (void)w, (void)x_type;
  return Mode::FLOATS;
}

// ---------------------------------------------------------------------------------------------- preparing the input

// What x is, and how it is to be read.
struct Given {
  const void* x;
  int64_t first, count, stride;  // rows, elements
  int type, input;
  float scale;  // STATIC
};

inline void widen_row(const void* x, int64_t begin, int type, int64_t dim, int64_t padded, float* out) {
  for (int64_t k = 0; k < dim; k += LANES) {
    int n = lanes_of(dim - k);
    store_as(out, k, FLOAT32, load_as(x, begin + k, type, n), n);
  }
  for (int64_t k = dim; k < padded; k++) out[k] = 0.0f;
}

inline float largest_of_row(const void* x, int64_t begin, int type, int64_t dim) {  // NaN where one is
  F most = zero();
  for (int64_t k = 0; k < dim; k += LANES) {
    F a = abs(load_as(x, begin + k, type, lanes_of(dim - k)));
    most = where_nan(a, a, max(a, most));  // max keeps its second where one is NaN
  }
  alignas(64) float lanes[LANES];
  store(lanes, most);
  float found = 0.0f;
  for (float lane : lanes) found = std::isnan(lane) || std::isnan(found) ? NAN : std::max(found, lane);
  return found;
}

// The first n bytes of each lane's number at `to`.
inline void store_bytes(int8_t* to, I whole, int n) {
  alignas(16) int8_t part[LANES];
  store_i8(part, whole);
  std::memcpy(to, part, n == LANES ? LANES : n);
}

inline int32_t sum(I a) {
  alignas(64) int32_t lanes[LANES];
  store(lanes, a);
  int32_t total = 0;
  for (int32_t lane : lanes) total += lane;
  return total;
}

// What quantize_row multiplies by, and how far a number may go.
struct Rounding {
  F inverse, top, bottom;

  F operator()(F x) const { return min(max(round(mul(x, inverse)), bottom), top); }
};

// What a weight's bytes have too much, times which an input's sum begins a sum of products; of zero points that differ
// that sum itself is kept.
inline int32_t begins_with(const Weight& w) { return w.kind == INT8 ? -128 : w.zero ? 1 : -8; }

// Inputs begin .. end of a row, a group of the weight: as bytes at `out`, of `planes` planes that are `padded` apart;
// their sums `times` something, by plane, at `sums` and `groups` after it.
template <int planes>
inline void quantize_group(const Given& g, int64_t row, int64_t begin, int64_t end, const Rounding& rounded,
                           int8_t* out, int64_t padded, int32_t times, int32_t* sums, int64_t groups) {
  I high_sum = zero_int(), low_sum = zero_int();
  for (int64_t k = begin; k < end; k += LANES) {
    int n = lanes_of(end - k);
    I high = to_int(rounded(load_as(g.x, row * g.stride + k, g.type, n)));
    if (planes == 2) {
      I low = right<24>(left<24>(high));
      high = right<8>(sub(high, low));
      low_sum = add(low_sum, low);
      store_bytes(out + padded + k, low, n);
    }
    high_sum = add(high_sum, high);
    store_bytes(out + k, high, n);
  }
  sums[0] = sum(high_sum) * times;
  if (planes == 2) sums[groups] = sum(low_sum) * times;
}

// q = round(x / scale), to nearest even, |q| <= largest; scale = max |x| / largest where it is not given. Fills `out`
// as the mode wants it and gives the scale: NaN or infinite, with q = 0, for a row that is not finite.
inline float quantize_row(const Given& g, int64_t row, const Weight& w, const Layout& l, int64_t padded, Mode mode,
                          void* out, int32_t* sums) {
  float largest = mode == Mode::PLANES ? LARGEST_OF_TWO : LARGEST;
  float most = largest_of_row(g.x, row * g.stride, g.type, w.dim);
  float scale = g.input == STATIC && std::isfinite(most) ? g.scale : most / largest;
  if (!std::isfinite(scale) || !(scale > 0.0f)) {
    std::memset(out, 0, mode == Mode::INTEGERS ? padded * 4 : mode == Mode::PLANES ? padded * 2 : padded);
    if (sums) std::memset(sums, 0, 2 * l.groups * sizeof(int32_t));
    return scale;
  }
  Rounding rounded{set1(1.0f / scale), set1(largest), set1(-largest)};
  if (mode == Mode::INTEGERS) {
    auto to = static_cast<float*>(out);
    for (int64_t k = 0; k < w.dim; k += LANES) {
      int n = lanes_of(w.dim - k);
      store_as(to, k, FLOAT32, rounded(load_as(g.x, row * g.stride + k, g.type, n)), n);
    }
    for (int64_t k = w.dim; k < padded; k++) to[k] = 0.0f;
    return scale;
  }
  auto to = static_cast<int8_t*>(out);
  int64_t span = l.groups > 1 ? l.group : w.dim, tail = padded - w.dim;
  int32_t times = begins_with(w);
  for (int64_t begin = 0, group = 0; begin < w.dim; begin += span, group++) {
    int64_t end = std::min(begin + span, w.dim);
    if (mode == Mode::PLANES) {
      quantize_group<2>(g, row, begin, end, rounded, to, padded, times, sums + group, l.groups);
    } else {
      quantize_group<1>(g, row, begin, end, rounded, to, padded, times, sums + group, l.groups);
    }
  }
  std::memset(to + w.dim, 0, tail);
  if (mode == Mode::PLANES) std::memset(to + padded + w.dim, 0, tail);
  return scale;
}

// The rows of `g` in the form that `w` wants; in place, or in the call's slots from `slot` to slot + 2.
inline Rows prepare(const Weight& w, const Given& g, int slot) {
  Mode mode = mode_of(w, g.type, g.input);
  if (mode == Mode::PAIRS && w.dim % 2 == 0 && g.stride % 2 == 0 && reinterpret_cast<uintptr_t>(g.x) % 4 == 0) {
    return {mode, static_cast<const uint16_t*>(g.x) + g.first * g.stride, g.stride / 2, 0, nullptr, nullptr};
  }
  if (mode == Mode::FLOATS && g.type == FLOAT32 && w.dim % 8 == 0) {
    return {mode, static_cast<const float*>(g.x) + g.first * g.stride, g.stride, 0, nullptr, nullptr};
  }
  Layout l(w);
  bool whole = mode != Mode::FLOATS && mode != Mode::PAIRS;
  int64_t padded = ceil_div(w.dim, 8) * 8;
  int64_t words = mode == Mode::PAIRS || mode == Mode::PLANES ? padded / 2 : mode == Mode::BYTES ? padded / 4 : padded;
  auto out = static_cast<uint32_t*>(call_scratch(slot, g.count * words * 4 + 64));
  auto scales = static_cast<float*>(call_scratch(slot + 1, g.count * sizeof(float)));
  bool summed = mode == Mode::BYTES || mode == Mode::PLANES;
  auto sums = summed ? static_cast<int32_t*>(call_scratch(slot + 2, g.count * 2 * l.groups * 4)) : nullptr;
  auto row = [&](int64_t r) {
    uint32_t* to = out + r * words;
    int64_t begin = (g.first + r) * g.stride;
    if (mode == Mode::FLOATS) {
      widen_row(g.x, begin, g.type, w.dim, padded, reinterpret_cast<float*>(to));
    } else if (mode == Mode::PAIRS) {
      std::memset(to, 0, padded * 2);
      std::memcpy(to, static_cast<const uint16_t*>(g.x) + begin, w.dim * 2);
    } else {
      int32_t* mine = sums ? sums + r * 2 * l.groups : nullptr;
      scales[r] = quantize_row(g, g.first + r, w, l, padded, mode, to, mine);
    }
  };
  constexpr int64_t few = 4;
  parallel(ceil_div(g.count, few), [&](int64_t task, int) {
    for (int64_t r = task * few; r < std::min(g.count, task * few + few); r++) row(r);
  });
  return {mode, out, words, padded / 4, whole ? scales : nullptr, sums};
}

// ------------------------------------------------------------------------------------- a few panels times a few rows

// What a task multiplies: `count` panels of an expert, and where it leaves [rows][count * 16] float32.
struct Job {
  const Weight* weight;
  const Layout* layout;
  const Rows* x;
  int64_t expert;
  int64_t panel[MOST_PANELS];
  int count;
  float* out;

  const uint8_t* data(int i) const {
    return weight->data + (expert * layout->panels + panel[i]) * layout->panel_bytes;
  }
  int64_t place(int i, int64_t group) const {  // of a panel's scales
    return ((expert * layout->panels + panel[i]) * layout->groups + group) * LANES;
  }
  float* row(int64_t m) const { return out + m * count * LANES; }

  // Panels first .. first + some, each with those that are `apart` behind it, `stacked` in all. They are taken in an
  // order in which each of a tile's `streams` goes through neighbours, as long a way as there is.
  void take(int64_t first, int64_t some, int64_t apart, int64_t stacked, int64_t streams) {
    streams = std::max<int64_t>(1, streams / stacked);
    bool even = some % streams == 0;
    for (int64_t i = 0; i < some; i++) {
      int64_t column = first + (even ? i % streams * (some / streams) + i / streams : i);
      for (int64_t s = 0; s < stacked; s++) panel[count++] = column + s * apart;
    }
  }

  // Panels first .. first + N from byte `begin` to `end` of each; the same bytes of a group after that follow, or the
  // next panels of the task.
  template <int N>
  Streams<N> streams(int first, int64_t begin, int64_t end) const {
    Streams<N> s;
    for (int n = 0; n < N; n++) {
      s.at[n] = data(first + n) + begin;
      s.next[n] = end < layout->panel_bytes || first + N + n >= count ? data(first + n) + end : data(first + N + n);
    }
    return s;
  }
};

template <class Step>
inline Step step_of(const Job& job, int i, int64_t group) {
  if constexpr (std::is_same_v<Step, Int4ZeroStep>) return zero_step(job.weight->zero + job.place(i, group));
  (void)job, (void)i, (void)group;
  return Step{};
}

// One tile over inputs begin .. end: the chain goes on from what is in `out`, or a group is folded into it.
template <class Step, int M, int N, bool far>
inline void float_tile(const Job& job, const Step (&step)[N], const Streams<N>& panel, int first, int64_t m,
                       int64_t begin, int64_t end, int64_t group) {
  F sum[M][N];
  bool folds = job.layout->groups > 1 || job.x->mode == Mode::INTEGERS, fresh = folds || begin == 0;
  for (int i = 0; i < M; i++) {
    for (int n = 0; n < N; n++) sum[i][n] = fresh ? zero() : load(job.row(m + i) + (first + n) * LANES);
  }
  multiply<Step, M, N, far>(step, panel, job.x->floats(m) + begin, job.x->stride,
                            ceil_div(end - begin, Step::inputs), sum);
  bool integers = job.x->mode == Mode::INTEGERS && job.layout->groups == 1;
  for (int n = 0; n < N; n++) {
    const float* scale = job.weight->scale ? job.weight->scale + job.place(first + n, group) : nullptr;
    for (int i = 0; i < M; i++) {
      float* out = job.row(m + i) + (first + n) * LANES;
      if (integers) {  // exact below 2^24, and from here on as int32
        I total = to_int(sum[i][n]);
        if (begin > 0) total = add(total, load(reinterpret_cast<int32_t*>(out)));
        store(reinterpret_cast<int32_t*>(out), total);
        if (end == job.weight->dim) store(out, mul(to_float(total), load(scale)));
      } else if (folds) {
        F total = group > 0 ? load(out) : zero();
        store(out, fma(sum[i][n], load(scale), total));
      } else {
        store(out, scale && end == job.weight->dim ? mul(sum[i][n], load(scale)) : sum[i][n]);
      }
    }
  }
}

template <class Step, int M, int N>
inline void direct_tile(const Job& job, int first) {
  const Layout& l = *job.layout;
  int64_t span = l.groups > 1 ? l.group : job.x->mode == Mode::INTEGERS ? EXACT : job.weight->dim;
  for (int64_t begin = 0, group = 0; begin < job.weight->dim; begin += span, group += l.groups > 1) {
    Step step[N];
    for (int n = 0; n < N; n++) step[n] = step_of<Step>(job, first + n, group);
    int64_t end = std::min(begin + span, job.weight->dim);
    Streams<N> panel = job.streams<N>(first, begin / Step::inputs * Step::bytes,
                                      ceil_div(end, Step::inputs) * Step::bytes);
    float_tile<Step, M, N, true>(job, step, panel, first, 0, begin, end, group);
  }
}

// Panels of a register tile by its rows: as many sums as there are registers for.
constexpr int side_by_side(int rows) {
  if (!WIDE) return rows == 1 ? 4 : rows == 2 ? 2 : 1;
  return rows <= 4 ? 4 : 2;
}

template <class Step, int M>
inline void direct_rows(const Job& job) {
  constexpr int N = side_by_side(M);
  int i = 0;
  for (; i + N <= job.count; i += N) direct_tile<Step, M, N>(job, i);
  if constexpr (N == 4) {
    if (i + 2 <= job.count) direct_tile<Step, M, 2>(job, i), i += 2;
  }
  for (; i < job.count; i++) direct_tile<Step, M, 1>(job, i);
}

template <class Step, int M = 1>
inline void direct(const Job& job, int64_t rows) {
  if constexpr (M <= TILE) {
    if (rows == M) return direct_rows<Step, M>(job);
    direct<Step, M + 1>(job, rows);
  }
}

template <class Step>
inline void decode_block(const Job& job, int i, int64_t begin, int64_t end, int64_t group, float* out) {
  Step step = step_of<Step>(job, i, group);
  const uint8_t* p = job.data(i) + begin / Step::inputs * Step::bytes;
  for (int64_t k = begin; k < end; k += Step::inputs, p += Step::bytes) {
    _mm_prefetch(reinterpret_cast<const char*>(p + AHEAD), _MM_HINT_T1);
    F w[Step::inputs];
    step.decode(p, w);
    for (int j = 0; j < Step::inputs; j++) store(out + (k - begin + j) * LANES, w[j]);
  }
}

template <int N, int M = TILE>
inline void blocked_tile(const Job& job, const float* block, int64_t span, int first, int64_t m, int64_t rows,
                         int64_t begin, int64_t end, int64_t group) {
  if constexpr (M >= 1) {
    if (rows < M) return blocked_tile<N, M - 1>(job, block, span, first, m, rows, begin, end, group);
    Float32Step step[N];
    Streams<N> panel;
    for (int n = 0; n < N; n++) panel.at[n] = reinterpret_cast<const uint8_t*>(block + (first + n) * span * LANES);
    float_tile<Float32Step, M, N, false>(job, step, panel, first, m, begin, end, group);
  }
}

template <class Step>
inline void blocked(const Job& job, int64_t rows, int thread) {
  const Layout& l = *job.layout;
  int64_t span = l.groups > 1 ? l.group : BLOCK;
  auto block = static_cast<float*>(thread_scratch(thread, (span + 8) * job.count * LANES * sizeof(float)));
  for (int64_t begin = 0, group = 0; begin < job.weight->dim; begin += span, group += l.groups > 1) {
    int64_t end = std::min(begin + span, job.weight->dim);
    for (int i = 0; i < job.count; i++) {
      decode_block<Step>(job, i, begin, end, group, block + i * span * LANES);
    }
    for (int64_t m = 0; m < rows; m += TILE) {
      int i = 0;
      for (; i + COLUMNS <= job.count; i += COLUMNS) {
        blocked_tile<COLUMNS>(job, block, span, i, m, std::min<int64_t>(TILE, rows - m), begin, end, group);
      }
      for (; i < job.count; i++) {
        blocked_tile<1>(job, block, span, i, m, std::min<int64_t>(TILE, rows - m), begin, end, group);
      }
    }
  }
}

constexpr int word_panels(int rows, int planes) { return rows * planes <= 6 ? 4 : 2; }

// Panels that a task's tiles have side by side.
constexpr int streams_of(Mode mode, int64_t rows) {
  int few = static_cast<int>(std::min<int64_t>(rows, TILE + 1));
  bool floats = mode == Mode::FLOATS || mode == Mode::INTEGERS;
  return floats ? side_by_side(few) : word_panels(few, mode == Mode::PLANES ? 2 : 1);
}

#if defined(__AVX512VNNI__)
constexpr int tile_rows(int planes) { return TILE / planes; }

// Whole numbers of P planes, times the scale; a group is added to those before it.
template <int P>
inline void fold_words(const Job& job, int i, int64_t m, int64_t group, const I (&whole)[P]) {
  float* out = job.row(m) + i * LANES;
  F y = to_float(whole[0]);
  if constexpr (P == 2) y = fma(y, set1(256.0f), to_float(whole[1]));
  F scale = load(job.weight->scale + job.place(i, group)), total = group > 0 ? load(out) : zero();
  store(out, fma(y, scale, total));
}

// What a row's sum of products begins with.
template <class Dot>
inline typename Dot::Sum beginning(const Job& job, int64_t m, int64_t group, int p) {
  if constexpr (std::is_same_v<typename Dot::Sum, F>) {
    return zero();
  } else {
    if (!Dot::zeros || job.weight->zero) return zero_int();
    return set1(job.x->sums[(m * 2 + p) * job.layout->groups + group]);
  }
}

// What `sum` means once zero points that differ are taken out.
template <class Dot, int P>
inline void finish_words(const Job& job, int i, int64_t m, int64_t group, const typename Dot::Sum (&sum)[P]) {
  if constexpr (std::is_same_v<typename Dot::Sum, F>) {
    store(job.row(m) + i * LANES, sum[0]);
  } else {
    const int32_t* sums = job.x->sums + m * 2 * job.layout->groups + group;
    if constexpr (!Dot::zeros) {
      I whole[P];
      for (int p = 0; p < P; p++) whole[p] = add(sum[p], set1(sums[p * job.layout->groups]));
      fold_words<P>(job, i, m, group, whole);
    } else if (job.weight->zero) {
      auto zeros = reinterpret_cast<const __m128i*>(job.weight->zero + job.place(i, group));
      I zero{_mm512_cvtepu8_epi32(_mm_loadu_si128(zeros))}, whole[P];
      for (int p = 0; p < P; p++) whole[p] = sub(sum[p], mul(zero, set1(sums[p * job.layout->groups])));
      fold_words<P>(job, i, m, group, whole);
    } else {
      fold_words<P>(job, i, m, group, sum);
    }
  }
}

template <class Dot, int P, int M, int N>
inline void word_tile(const Job& job, int first, int64_t m) {
  const Layout& l = *job.layout;
  int64_t span = l.groups > 1 ? l.group : job.weight->dim;
  for (int64_t begin = 0, group = 0; begin < job.weight->dim; begin += span, group += l.groups > 1) {
    int64_t steps = ceil_div(std::min(span, job.weight->dim - begin), l.inputs);
    Streams<N> panel = job.streams<N>(first, begin / l.inputs * l.bytes, (begin / l.inputs + steps) * l.bytes);
    const uint32_t* x = job.x->words(m) + begin / l.inputs * Dot::vectors;
    auto begins = [&](int i, int p) { return beginning<Dot>(job, m + i, group, p); };
    auto finish = [&](int i, int n, const typename Dot::Sum(&sum)[P]) {
      finish_words<Dot, P>(job, first + n, m + i, group, sum);
    };
    if constexpr (Dot::zeros) {  // its groups are short: from the registers
      multiply_words<Dot, P, M, N, true>(panel, x, job.x->stride, job.x->plane, steps, begins, finish);
    } else {
      typename Dot::Sum sum[M][N][P];
      multiply_words<Dot, P, M, N, true>(panel, x, job.x->stride, job.x->plane, steps, begins,
                                         [&](int i, int n, const typename Dot::Sum(&one)[P]) {
                                           for (int p = 0; p < P; p++) sum[i][n][p] = one[p];
                                         });
      for (int n = 0; n < N; n++) {
        for (int i = 0; i < M; i++) finish(i, n, sum[i][n]);
      }
    }
  }
}

template <class Dot, int P, int M>
inline void word_rows(const Job& job) {
  constexpr int N = word_panels(M, P);
  int i = 0;
  for (; i + N <= job.count; i += N) word_tile<Dot, P, M, N>(job, i, 0);
  if constexpr (N == 4) {
    if (i + 2 <= job.count) word_tile<Dot, P, M, 2>(job, i, 0), i += 2;
  }
  for (; i < job.count; i++) word_tile<Dot, P, M, 1>(job, i, 0);
}

template <class Dot, int P, int M = 1>
inline void few_words(const Job& job, int64_t rows) {
  if constexpr (M <= tile_rows(P)) {
    if (rows == M) return word_rows<Dot, P, M>(job);
    few_words<Dot, P, M + 1>(job, rows);
  }
}

template <class Dot, int P, int N, int M = tile_rows(P)>
inline void words_from(const Job& job, int first, int64_t m, int64_t rows) {
  if constexpr (M >= 1) {
    if (rows < M) return words_from<Dot, P, N, M - 1>(job, first, m, rows);
    word_tile<Dot, P, M, N>(job, first, m);
  }
}

// Tiles of about as many rows each; what two panels hold stays in the cache for the next tile.
template <class Dot, int P>
inline void words(const Job& job, int64_t rows) {
  constexpr int64_t most = tile_rows(P);
  if (rows <= most) return few_words<Dot, P>(job, rows);
  int64_t tiles = ceil_div(rows, most);
  for (int i = 0; i < job.count; i += COLUMNS) {
    for (int64_t t = 0, m = 0; t < tiles; t++) {
      int64_t some = (rows - m) / (tiles - t);
      i + COLUMNS <= job.count ? words_from<Dot, P, COLUMNS>(job, i, m, some) : words_from<Dot, P, 1>(job, i, m, some);
      m += some;
    }
  }
}

template <class Dot>
inline void planes(const Job& job, int64_t rows) {
  job.x->mode == Mode::BYTES ? words<Dot, 1>(job, rows) : words<Dot, 2>(job, rows);
}
#endif

template <class Step>
inline void floats(const Job& job, int64_t rows, int thread) {
  rows <= TILE ? direct<Step>(job, rows) : blocked<Step>(job, rows, thread);
}

#if defined(__AMX_INT8__) || defined(ONEROOF_EMULATE_AMX)
bool tiled(const Job& job, int64_t rows);  // amx.h
void tiles(const Job& job, int64_t rows, int thread);
#endif

// out[m] = x[m] @ panels, with the weight's scales: the one way to it for all kernels.
inline void compute(const Job& job, int64_t rows, int thread) {
#if defined(__AMX_INT8__) || defined(ONEROOF_EMULATE_AMX)
  if (tiled(job, rows)) return tiles(job, rows, thread);
#endif
#if defined(__AVX512VNNI__)
  if (job.x->sums) return job.weight->kind == INT8 ? planes<Int8Dot>(job, rows) : planes<Int4Dot>(job, rows);
#endif
#if defined(__AVX512BF16__)
  if (job.x->mode == Mode::PAIRS) return words<PairsDot, 1>(job, rows);
#endif
  switch (job.weight->kind) {
    case FLOAT32: return floats<Float32Step>(job, rows, thread);
    case BFLOAT16: return floats<BFloat16Step>(job, rows, thread);
    case FLOAT16: return floats<Float16Step>(job, rows, thread);
#if !defined(__AVX512VNNI__)
    case INT8: return floats<Int8Step>(job, rows, thread);
    case INT4:
      return job.weight->zero ? floats<Int4ZeroStep>(job, rows, thread) : floats<Int4Step>(job, rows, thread);
#endif
  }
}

// ------------------------------------------------------------------------------------------------- whole products

// Panels that a task takes: a register tile's for many rows, so that a block stays in the cache; for few rows as long
// a stretch of memory as leaves each thread several tasks.
inline int64_t panels_of_task(int64_t rows, int64_t panels) {
  if (rows > TILE) return COLUMNS;
  int64_t share = panels / (4 * thread_count()) / 4 * 4;
  return std::min<int64_t>(MOST_PANELS, std::max<int64_t>(share, std::min<int64_t>(4, ceil_div(panels, thread_count()))));
}

// Rows of x that are prepared at once: what they take stays within some megabytes.
inline int64_t rows_at_once(int64_t dim) {
  return std::max<int64_t>(ROWS, (int64_t{8} << 20) / std::max<int64_t>(dim, 1) / ROWS * ROWS);
}

// Bytes of two panels of nibbles, a byte each, for a group.
inline int64_t nibble_scratch(const Layout& l) { return ceil_div(l.group, 8) * 256; }

// [ROWS][COLUMNS * 16] of the thread's scratch, behind the block that is decoded there.
inline float* result_after_block(const Layout& l, int thread) {
  int64_t block = ((l.groups > 1 ? l.group : BLOCK) + 8) * 2 * COLUMNS * LANES;
  if (l.inputs == 8) block = std::max<int64_t>(block, nibble_scratch(l) / sizeof(float));
  return static_cast<float*>(thread_scratch(thread, (block + ROWS * 2 * COLUMNS * LANES) * sizeof(float))) + block;
}

template <class Epilogue>
inline void each_task(const Product& p, int64_t panels, int64_t stacked, const Epilogue& epilogue) {
  // `stacked`: panels that belong together stand `panels` apart, so many times
  const Weight& w = *p.weight;
  Layout layout(w);
  int64_t at_once = rows_at_once(w.dim);
  for (int64_t first = 0; first < p.tokens; first += at_once) {
    int64_t count = std::min(at_once, p.tokens - first);
    Rows x = prepare(w, {p.x, first, count, p.x_stride, p.x_type, p.input, p.input_scale}, 0);
    int64_t width = std::max<int64_t>(1, panels_of_task(count, panels * stacked) / stacked);
    int64_t columns = ceil_div(panels, width), slices = ceil_div(count, ROWS);
    parallel(columns * slices, [&](int64_t task, int thread) {
      int64_t m = task / columns * ROWS, rows = std::min(ROWS, count - m);
      alignas(64) float small[TILE * MOST_PANELS * LANES];
      float* out = rows > TILE ? result_after_block(layout, thread) : small;
      Rows mine = x.from(m, 2 * layout.groups);
      Job job{&w, &layout, &mine, 0, {}, 0, out};
      int64_t c = task % columns * width;
      job.take(c, std::min(width, panels - c), panels, stacked, streams_of(x.mode, rows));
      compute(job, rows, thread);
      epilogue(job, rows, first + m);
    });
  }
}

inline F scaled(const Job& job, int64_t m, int i) {
  F y = load(job.row(m) + i * LANES);
  return job.x->scale ? mul(y, set1(job.x->scale[m])) : y;
}

inline F biased(F y, const Product& p, int64_t column, int64_t width) {
  if (!p.bias) return y;
  return add(y, load_as(p.bias, column, p.x_type, lanes_of(width - column)));
}

inline void linear(const Product& p) {
  Call call;
  int64_t width = p.weight->rows;
  each_task(p, ceil_div(width, LANES), 1, [&](const Job& job, int64_t rows, int64_t first) {
    for (int64_t m = 0; m < rows; m++) {
      for (int i = 0; i < job.count; i++) {
        int64_t column = job.panel[i] * LANES;
        F y = biased(scaled(job, m, i), p, column, width);
        store_as(p.y, (first + m) * p.y_stride + column, p.y_type, y, lanes_of(width - column));
      }
    }
  });
}

inline void gated(const Product& p) {
  Call call;
  int64_t width = p.weight->rows / 2;
  each_task(p, width / LANES, 2, [&](const Job& job, int64_t rows, int64_t first) {
    for (int64_t m = 0; m < rows; m++) {
      for (int i = 0; i < job.count; i += 2) {
        int64_t column = job.panel[i] * LANES;
        F gate = biased(scaled(job, m, i), p, column, 2 * width);
        F up = biased(scaled(job, m, i + 1), p, width + column, 2 * width);
        store_as(p.y, (first + m) * p.y_stride + column, p.y_type, mul(silu(gate), up));
      }
    }
  });
}

}  // namespace
}  // namespace ONEROOF_VARIANT
}  // namespace oneroof
