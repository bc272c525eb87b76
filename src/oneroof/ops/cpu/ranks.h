// Sums and rows of several ranks on one machine, over the memory that they share.
//
// A sum is taken in the order of ranks, by each rank for itself: it has the same bits everywhere, and a row's do not
// depend on what stands beside it.

#pragma once

#include <algorithm>

#include "board.h"
#include "pool.h"
#include "simd.h"

namespace oneroof {
namespace ONEROOF_VARIANT {
namespace {

constexpr int64_t PIECE = 16384;  // numbers of a task

template <class Fn>
inline void in_pieces(int64_t count, const Fn& fn) {  // fn(begin, end)
  if (count <= 2 * PIECE) return fn(0, count);
  parallel((count + PIECE - 1) / PIECE,
           [&](int64_t task, int) { fn(task * PIECE, std::min(count, (task + 1) * PIECE)); });
}

inline void add_up(const Total& t, const Board& b, uint32_t turn, int64_t first, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; i += LANES) {
    int n = lanes_of(end - i);
    F y = load_as(b.place(0, turn), i, t.x_type, n);
    for (int64_t r = 1; r < b.ranks; r++) y = add(y, load_as(b.place(r, turn), i, t.x_type, n));
    store_as(t.out, first + i, t.out_type, y, n);
  }
}

inline void total(const Total& t) {
  Call call;
  Board& b = *t.board;
  int64_t size = t.x_type == FLOAT32 ? 4 : 2, all = t.tokens * t.dim, most = b.slot / size / LANES * LANES;
  for (int64_t first = 0; first < all; first += most) {
    int64_t count = std::min(most, all - first);
    auto turn = static_cast<uint32_t>(++b.turn);
    if (!await_all(b, turn - 1)) return;
    auto from = static_cast<const char*>(t.x) + first * size;
    in_pieces(count, [&](int64_t begin, int64_t end) {
      std::memcpy(b.place(b.rank, turn) + begin * size, from + begin * size, (end - begin) * size);
    });
    count_up(b, turn);
    if (!await_all(b, turn)) return;
    in_pieces(count, [&](int64_t begin, int64_t end) { add_up(t, b, turn, first, begin, end); });
  }
}

inline void side_by_side(const Columns& c) {
  Call call;
  Board& b = *c.board;
  auto width = [&](int64_t r) { return std::max<int64_t>(0, std::min(c.whole, (r + 1) * c.each) - r * c.each); };
  int64_t most = b.slot / (c.each * 4), mine = width(b.rank);
  for (int64_t first = 0; first < c.rows; first += most) {
    int64_t rows = std::min(most, c.rows - first);
    auto turn = static_cast<uint32_t>(++b.turn);
    if (!await_all(b, turn - 1)) return;
    in_pieces(rows * mine, [&](int64_t begin, int64_t end) {
      std::memcpy(b.place(b.rank, turn) + begin * 4, c.x + first * mine + begin, (end - begin) * 4);
    });
    count_up(b, turn);
    if (!c.out) continue;
    if (!await_all(b, turn)) return;
    parallel(rows * b.ranks, [&](int64_t task, int) {
      int64_t row = task / b.ranks, r = task % b.ranks;
      auto from = reinterpret_cast<const float*>(b.place(r, turn)) + row * width(r);
      std::memcpy(c.out + (first + row) * c.whole + r * c.each, from, width(r) * 4);
    });
  }
}

}  // namespace
}  // namespace ONEROOF_VARIANT
}  // namespace oneroof
