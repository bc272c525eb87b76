// What stands between the products of experts in training: rows back to their tokens, and SwiGLU backward.
//
// Row by row, in float32; a sum has one order, whatever the other rows and the threads.

#pragma once

#include <algorithm>

#include "pool.h"
#include "simd.h"
#include "training.h"

namespace oneroof {
namespace ONEROOF_VARIANT {
namespace {

constexpr int64_t AT_ONCE = 8;  // rows of a task

template <class Fn>
inline void each_row(int64_t rows, const Fn& fn) {
  parallel((rows + AT_ONCE - 1) / AT_ONCE, [&](int64_t task, int) {
    for (int64_t r = task * AT_ONCE; r < std::min(rows, (task + 1) * AT_ONCE); r++) fn(r);
  });
}

template <class Fn>
inline void each_lanes(int64_t width, const Fn& fn) {  // fn(column, how many are there)
  for (int64_t c = 0; c < width; c += LANES) fn(c, lanes_of(width - c));
}

inline void gather(const Gather& g) {
  Call call;
  each_row(g.tokens, [&](int64_t t) {
    each_lanes(g.dim, [&](int64_t c, int n) {
      F y = zero();
      for (int64_t j = t * g.k; j < (t + 1) * g.k; j++) {
        F x = load_as(g.x, g.place[j] * g.dim + c, g.x_type, n);
        y = g.weights ? fma(set1(g.weights[j]), x, y) : add(y, x);
      }
      store_as(g.y, t * g.dim + c, g.y_type, y, n);
    });
  });
}

inline void gate(const Gate& g) {
  Call call;
  each_row(g.rows, [&](int64_t r) {
    int64_t row = r * g.width, both = 2 * row;
    F weight = set1(g.weights[r]), one = set1(1.0f), total = zero();
    each_lanes(g.width, [&](int64_t c, int n) {
      F x = load_as(g.gate_up, both + c, g.type, n), up = load_as(g.gate_up, both + g.width + c, g.type, n);
      F d = load(g.d + row + c, n), sigmoid = div(one, add(one, exp(sub(zero(), x))));
      F activated = mul(x, sigmoid), hidden = mul(activated, up);
      total = fma(d, hidden, total);
      F mine = mul(weight, d), slope = mul(sigmoid, fma(x, sub(one, sigmoid), one));
      store_as(g.d_gate_up, both + c, g.type, mul(mul(mine, up), slope), n);
      store_as(g.d_gate_up, both + g.width + c, g.type, mul(mine, activated), n);
      store_as(g.weighed, row + c, g.type, mul(weight, hidden), n);
    });
    g.d_weights[r] = sum(total);
  });
}

}  // namespace
}  // namespace ONEROOF_VARIANT
}  // namespace oneroof
