// Products in tiles: sixteen rows of x times a panel, and four such sums side by side.
//
// Sums of bytes are whole and exact, so that tiles and the loops of panels.h give the same bits and either
// may serve: tiles from a few rows on. Of bfloat16 an instruction sums a block's even and odd inputs apart
// before it adds both to the chain, as no other does: so every row goes this way, also one alone. Blocks are
// of one length, which divides what there is to sum: none is cut short. A weight that has no such length is
// left to the other loops, whatever the rows.

#pragma once

#include "matmul.h"

#if defined(__AMX_INT8__) || defined(ONEROOF_EMULATE_AMX)
#if defined(ONEROOF_EMULATE_AMX)
#include "amx_emulated.h"
#endif

namespace oneroof {
namespace ONEROOF_VARIANT {
namespace {

constexpr int64_t DEEP = 16;     // words of x that an instruction takes at most
constexpr int64_t SHALLOW = 4;   // and at least, to be worth it
constexpr int64_t HIGH = 16;     // rows of a tile
constexpr int64_t FEW_ROWS = 4;  // the other loops are as quick

// What was stored at p is in memory from here on: the compiler is not told what a tile is loaded from.
inline void settle(const void* p) { asm volatile("" : : "r"(p) : "memory"); }

// A thread's tile registers: sums in 0 to 3 (of the first rows with panels 0 and 1, then of the second rows),
// the two blocks of rows in 4 and 5, panels in 6 and 7. They are given back at the end.
class Tiles {
 public:
  Tiles() = default;
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;
  ~Tiles() { _tile_release(); }

  // Rows of the first and of the second block, and words of x in each.
  void shape(int64_t first, int64_t second, int64_t words) {
    if (first == first_ && second == second_ && words == words_) return;
    first_ = first, second_ = second, words_ = words;
    Palette p;
    p.set(0, first, DEEP), p.set(1, first, DEEP);
    p.set(2, second, DEEP), p.set(3, second, DEEP);
    p.set(4, first, words), p.set(5, second, words);
    p.set(6, words, DEEP), p.set(7, words, DEEP);
    settle(&p);
    _tile_loadconfig(&p);
  }

 private:
  struct alignas(64) Palette {  // the first of them, as the instruction reads it
    uint8_t number = 1, rest[15] = {};
    uint16_t bytes[16] = {};
    uint8_t rows[16] = {};

    void set(int tile, int64_t high, int64_t wide) {
      rows[tile] = static_cast<uint8_t>(high);
      bytes[tile] = static_cast<uint16_t>(high ? wide * 4 : 0);
    }
  };

  int64_t first_ = -1, second_ = -1, words_ = -1;
};

// Inputs that share a scale, in blocks of `words` words of x.
struct Span {
  int64_t begin, end, group, words, blocks;
};

inline int64_t block_words(int64_t all) {
  int64_t words = DEEP;
  while (all % words) words--;
  return words;
}

inline Span span_of(const Job& job, int64_t group) {
  const Layout& l = *job.layout;
  int64_t all = l.groups > 1 ? l.group : job.weight->dim, begin = group * all;
  int64_t end = std::min(begin + all, job.weight->dim);
  int64_t sum = ceil_div(end - begin, job.x->mode == Mode::PAIRS ? 2 : 4), words = block_words(sum);
  return {begin, end, group, words, sum / words};
}

#define ONEROOF_DOT(sum, x, w)   \
  {                              \
    if constexpr (whole) {       \
      _tile_dpbssd(sum, x, w);   \
    } else {                     \
      _tile_dpbf16ps(sum, x, w); \
    }                            \
  }

// Sums of A blocks of rows, `stride` bytes apart, with N panels. `far`: panels come from memory, not a cache.
template <bool whole, int A, int N, bool far>
inline void multiply_tiles(const uint8_t* const (&x)[2], int64_t stride, const Streams<N>& panel,
                           const Span& span) {
  _tile_zero(0);
  if constexpr (N == 2) _tile_zero(1);
  if constexpr (A == 2) _tile_zero(2);
  if constexpr (A == 2 && N == 2) _tile_zero(3);
  int64_t lines = span.words * span.blocks;
  for (int64_t line = 0; line < lines; line += span.words) {
    for (int n = 0; far && n < N; n++) {
      for (int64_t i = 0; i < span.words; i++) panel.template fetch<64>(n, line + i, lines);
    }
    _tile_loadd(4, x[0] + line * 4, stride);
    _tile_loadd(6, panel.at[0] + line * 64, 64);
    ONEROOF_DOT(0, 4, 6)
    if constexpr (N == 2) {
      _tile_loadd(7, panel.at[1] + line * 64, 64);
      ONEROOF_DOT(1, 4, 7)
    }
    if constexpr (A == 2) {
      _tile_loadd(5, x[1] + line * 4, stride);
      ONEROOF_DOT(2, 5, 6)
    }
    if constexpr (A == 2 && N == 2) ONEROOF_DOT(3, 5, 7)
  }
}

#undef ONEROOF_DOT

// The sums of A blocks of rows with N panels, each [16][16], to where `to` says.
template <int A, int N, class To>
inline void store_tiles(int64_t stride, const To& to) {
  _tile_stored(0, to(0, 0), stride);
  if constexpr (N == 2) _tile_stored(1, to(0, 1), stride);
  if constexpr (A == 2) _tile_stored(2, to(1, 0), stride);
  if constexpr (A == 2 && N == 2) _tile_stored(3, to(1, 1), stride);
}

// Two blocks of rows: of P = 1 plane one after the other, of P = 2 the same rows of both.
template <class Dot, int P, int N, int A, bool far>
inline void tile_of(const Job& job, int first, int64_t m, int64_t rows, const Span& span,
                    const Streams<N>& panel) {
  constexpr bool whole = std::is_same_v<typename Dot::Sum, I>;
  int64_t stride = job.x->stride * 4;
  auto x = reinterpret_cast<const uint8_t*>(job.x->words(m) + span.begin / (whole ? 4 : 2));
  const uint8_t* const blocks[2] = {x, x + (P == 2 ? job.x->plane * 4 : A == 2 ? HIGH * stride : 0)};
  multiply_tiles<whole, A, N, far>(blocks, stride, panel, span);
  if constexpr (!whole) {
    auto out = [&](int a, int n) { return job.row(m + a * HIGH) + (first + n) * LANES; };
    store_tiles<A, N>(job.count * LANES * 4, out);
  } else {
    alignas(64) int32_t sums[A][N][HIGH][LANES];
    store_tiles<A, N>(LANES * 4, [&](int a, int n) { return sums[a][n]; });
    for (int64_t r = 0; r < rows; r++) {
      for (int n = 0; n < N; n++) {
        I sum[P];
        for (int p = 0; p < P; p++) {
          sum[p] = load(sums[P == 2 ? p : r / HIGH][n][r % HIGH]);
          if (std::is_same_v<Dot, Int4Dot>) sum[p] = add(sum[p], beginning<Dot>(job, m + r, span.group, p));
        }
        if constexpr (std::is_same_v<Dot, Int4Dot>) {
          finish_words<Dot, P>(job, first + n, m + r, span.group, sum);
        } else {
          fold_words<P>(job, first + n, m + r, span.group, sum);  // signed times signed: no offset
        }
      }
    }
  }
}

template <class Dot, int P, int N, bool far>
inline void tile_rows_of(const Job& job, Tiles& tiles, int first, int64_t rows, const Span& span,
                         const Streams<N>& panel) {
  constexpr int64_t most = 2 * HIGH / P;
  for (int64_t m = 0; m < rows; m += most) {
    int64_t some = std::min(most, rows - m), high = std::min(HIGH, some), low = P == 2 ? high : some - high;
    tiles.shape(high, low, span.words);
    if (P == 2 || low) {
      tile_of<Dot, P, N, 2, far>(job, first, m, some, span, panel);
    } else if constexpr (P == 1) {
      tile_of<Dot, P, N, 1, far>(job, first, m, some, span, panel);
    }
  }
}

// Nibbles of N panels as bytes, in the order of an int8 panel.
template <int N>
inline Streams<N> widen_nibbles(const Streams<N>& panel, int64_t steps, uint8_t* out) {
  Streams<N> wide;
  for (int n = 0; n < N; n++, out += steps * 128) {
    for (int64_t s = 0; s < steps; s++) {
      panel.template fetch<64>(n, s, steps);
      __m512i bytes[2];
      Int4Dot::decode(panel.at[n] + s * 64, bytes);
      _mm512_storeu_si512(out + s * 128, bytes[0]);
      _mm512_storeu_si512(out + s * 128 + 64, bytes[1]);
    }
    wide.at[n] = wide.next[n] = out;
    settle(out);
  }
  return wide;
}

template <class Dot, int P, int N>
inline void tile_panels(const Job& job, Tiles& tiles, int first, int64_t rows, int thread) {
  const Layout& l = *job.layout;
  for (int64_t group = 0; group < l.groups; group++) {
    Span span = span_of(job, group);
    int64_t steps = ceil_div(span.end - span.begin, l.inputs), step = span.begin / l.inputs;
    Streams<N> panel = job.streams<N>(first, step * 64, (step + steps) * 64);
    if constexpr (std::is_same_v<Dot, Int4Dot>) {
      auto memory = static_cast<uint8_t*>(thread_scratch(thread, nibble_scratch(l)));
      tile_rows_of<Dot, P, N, false>(job, tiles, first, rows, span, widen_nibbles<N>(panel, steps, memory));
    } else if (rows <= 2 * HIGH / P) {
      tile_rows_of<Dot, P, N, true>(job, tiles, first, rows, span, panel);
    } else {
      tile_rows_of<Dot, P, N, false>(job, tiles, first, rows, span, panel);
    }
  }
}

template <class Dot, int P>
inline void tile_words(const Job& job, int64_t rows, int thread) {
  Tiles tiles;
  int i = 0;
  for (; i + 2 <= job.count; i += 2) tile_panels<Dot, P, 2>(job, tiles, i, rows, thread);
  if (i < job.count) tile_panels<Dot, P, 1>(job, tiles, i, rows, thread);
}

// Whether tiles serve: of bfloat16 all rows of a weight or none.
inline bool tiled(const Job& job, int64_t rows) {
  bool pairs = job.x->mode == Mode::PAIRS;
  if (!pairs && (!job.x->sums || rows <= FEW_ROWS)) return false;
  Span span = span_of(job, 0);
  return span.words >= SHALLOW || span.blocks == 1;
}

inline void tiles(const Job& job, int64_t rows, int thread) {
  bool one = job.x->mode == Mode::BYTES;
  if (job.x->mode == Mode::PAIRS) return tile_words<PairsDot, 1>(job, rows, thread);
  if (job.weight->kind == INT8) {
    one ? tile_words<Int8Dot, 1>(job, rows, thread) : tile_words<Int8Dot, 2>(job, rows, thread);
  } else {
    one ? tile_words<Int4Dot, 1>(job, rows, thread) : tile_words<Int4Dot, 2>(job, rows, thread);
  }
}

}  // namespace
}  // namespace ONEROOF_VARIANT
}  // namespace oneroof
#endif
