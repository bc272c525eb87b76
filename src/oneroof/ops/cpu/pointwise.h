// What works on rows by themselves: norms, the heads' norm and rotation, SwiGLU, the largest of a row, the
// router.
//
// Sums run in one order for each row, whatever stands beside it; 16-bit types are read once, worked on in
// float32 and rounded once at the end (a residual's sum is rounded before its norm, as it is kept).

#pragma once

#include <algorithm>
#include <type_traits>

#include "abi.h"
#include "pool.h"
#include "simd.h"

namespace oneroof {
namespace ONEROOF_VARIANT {
namespace {

constexpr int64_t WORTH = 1 << 15;  // numbers that are worth waking another thread for

// body(first, end) over rows, on all threads where there is enough to do.
template <class Body>
void over_rows(int64_t rows, int64_t width, Body&& body) {
  int64_t tasks = std::min<int64_t>(rows, std::min<int64_t>(rows * width / WORTH, 4 * thread_count()));
  if (tasks <= 1) {
    if (rows > 0) body(0, rows);
    return;
  }
  parallel(tasks, [&](int64_t task, int) { body(rows * task / tasks, rows * (task + 1) / tasks); });
}

// A row of any float type, in registers' worths; the last one may be partial.
template <int type>
inline F part_of(const void* x, int64_t i, int64_t left) {
  return left >= LANES ? load_as(x, i, type) : load_as(x, i, type, static_cast<int>(left));
}
template <int type>
inline void put_part(void* y, int64_t i, int64_t left, F value) {
  left >= LANES ? store_as(y, i, type, value) : store_as(y, i, type, value, static_cast<int>(left));
}

template <class Body>
inline void with_type(int32_t type, Body&& body) {
  switch (type) {
    case FLOAT32: return body(std::integral_constant<int, FLOAT32>());
    case BFLOAT16: return body(std::integral_constant<int, BFLOAT16>());
    default: return body(std::integral_constant<int, FLOAT16>());
  }
}

// 1 / sqrt(mean of squares + eps), from the squares in lanes
inline float root(F squares, int64_t dim, float eps) {
  return 1.0f / std::sqrt(sum(squares) / static_cast<float>(dim) + eps);
}

template <int type>
void norm_row(const Norm& n, int64_t row) {
  F squares[4] = {zero(), zero(), zero(), zero()};  // every fourth register of the row
  int64_t x = row * n.x_stride, residual = row * n.residual_stride, y = row * n.dim;
  for (int64_t i = 0, turn = 0; i < n.dim; i += LANES, turn++) {
    F part = part_of<type>(n.x, x + i, n.dim - i);
    if (n.residual) {
      part = add(part, part_of<type>(n.residual, residual + i, n.dim - i));
      put_part<type>(n.total, y + i, n.dim - i, part);
      part = part_of<type>(n.total, y + i, n.dim - i);  // as it was rounded
    }
    squares[turn & 3] = fma(part, part, squares[turn & 3]);
  }
  F factor = set1(root(add(add(squares[0], squares[1]), add(squares[2], squares[3])), n.dim, n.eps));
  const void* from = n.residual ? n.total : n.x;
  int64_t start = n.residual ? y : x;
  for (int64_t i = 0; i < n.dim; i += LANES) {
    F part = mul(part_of<type>(from, start + i, n.dim - i), factor);
    put_part<type>(n.y, y + i, n.dim - i, mul(part, part_of<type>(n.weight, i, n.dim - i)));
  }
}

void rms_norm(const Norm& n) {
  Call call;
  over_rows(n.tokens, n.dim, [&](int64_t first, int64_t end) {
    with_type(n.type, [&](auto type) {
      for (int64_t row = first; row < end; row++) norm_row<decltype(type)::value>(n, row);
    });
  });
}

// x [d] in float32 becomes x * cos + partner * sin, where the partner is half a head away, or the neighbour.
inline void turn_head(float* x, const float* cos, const float* sin, int64_t dim, bool interleaved) {
  if (interleaved) {
    for (int64_t i = 0; i < dim; i += 2) {
      float a = x[i], b = x[i + 1];
      x[i] = std::fma(b, sin[i], a * cos[i]);
      x[i + 1] = std::fma(a, sin[i + 1], b * cos[i + 1]);
    }
    return;
  }
  int64_t half = dim / 2;
  for (int64_t i = 0; i < half; i += LANES) {
    int many = lanes_of(half - i);
    F a = load(x + i, many), b = load(x + half + i, many);
    store(x + i, fma(b, load(sin + i, many), mul(a, load(cos + i, many))), many);
    store(x + half + i, fma(a, load(sin + half + i, many), mul(b, load(cos + half + i, many))), many);
  }
}

template <int type>
inline void norm_head(float* x, const void* weight, int64_t dim, float eps) {
  F squares = zero();
  for (int64_t i = 0; i < dim; i += LANES) {
    F part = load(x + i, lanes_of(dim - i));
    squares = fma(part, part, squares);
  }
  F factor = set1(root(squares, dim, eps));
  for (int64_t i = 0; i < dim; i += LANES) {
    int many = lanes_of(dim - i);
    store(x + i, mul(mul(load(x + i, many), factor), part_of<type>(weight, i, dim - i)), many);
  }
}

constexpr int64_t MOST_DIM = 1024;  // of a head

template <int type>
void turn_row(const Heads& h, int64_t row) {
  alignas(64) float x[MOST_DIM];
  for (int64_t head = 0; head < h.heads + h.kv_heads; head++) {
    int64_t start = row * h.stride + head * h.dim;
    bool query = head < h.heads;
    for (int64_t i = 0; i < h.dim; i += LANES) {
      int many = lanes_of(h.dim - i);
      store(x + i, part_of<type>(h.qkv, start + i, h.dim - i), many);
    }
    if (const void* weight = query ? h.q_norm : h.k_norm) norm_head<type>(x, weight, h.dim, h.eps);
    turn_head(x, h.cos + row * h.dim, h.sin + row * h.dim, h.dim, h.interleaved);
    F scale = set1(query && h.query_scale ? h.query_scale[row] : 1.0f);
    for (int64_t i = 0; i < h.dim; i += LANES) {
      int many = lanes_of(h.dim - i);
      put_part<type>(h.qkv, start + i, h.dim - i, mul(load(x + i, many), scale));
    }
  }
}

void heads(const Heads& h) {
  Call call;
  over_rows(h.tokens, (h.heads + h.kv_heads) * h.dim, [&](int64_t first, int64_t end) {
    with_type(h.type, [&](auto type) {
      for (int64_t row = first; row < end; row++) turn_row<decltype(type)::value>(h, row);
    });
  });
}

template <int type>
void swiglu_row(const void* gate_up, void* y, int64_t from, int64_t to, int64_t width) {
  for (int64_t i = 0; i < width; i += LANES) {
    F gate = part_of<type>(gate_up, from + i, width - i),
      up = part_of<type>(gate_up, from + width + i, width - i);
    put_part<type>(y, to + i, width - i, mul(silu(gate), up));
  }
}

void swiglu(const Swiglu& s) {
  Call call;
  over_rows(s.tokens, 8 * s.width, [&](int64_t first, int64_t end) {  // an exponential and a division are work
    with_type(s.type, [&](auto type) {
      for (int64_t row = first; row < end; row++) {
        swiglu_row<decltype(type)::value>(s.gate_up, s.y, row * s.stride, row * s.width, s.width);
      }
    });
  });
}

void blend(const Blend& b) {
  Call call;
  over_rows(b.tokens, b.dim, [&](int64_t first, int64_t end) {
    with_type(b.type, [&](auto type) {
      constexpr int32_t T = decltype(type)::value;
      for (int64_t row = first; row < end; row++) {
        int64_t x = row * b.x_stride, y = row * b.y_stride, out = row * b.dim;
        F weight = set1(1.0f);
        if (b.gate) {
          alignas(64) float gate[LANES];
          store(gate, part_of<T>(b.gate, row * b.gate_stride, 1));
          weight = div(weight, add(weight, exp(set1(-gate[0]))));
        }
        for (int64_t i = 0; i < b.dim; i += LANES) {
          F part = part_of<T>(b.y, y + i, b.dim - i), onto = part_of<T>(b.x, x + i, b.dim - i);
          put_part<T>(b.out, out + i, b.dim - i, fma(weight, part, onto));
        }
      }
    });
  });
}

void waves(const Waves& w) {
  Call call;
  over_rows(w.tokens, 64 * w.half, [&](int64_t first, int64_t end) {  // a cosine is work
    for (int64_t row = first; row < end; row++) {
      float *cos = w.cos + row * 2 * w.half, *sin = w.sin + row * 2 * w.half;
      for (int64_t i = 0; i < w.half; i++) {
        float turn = w.turns[row * w.half + i], c = std::cos(turn) * w.factor, s = std::sin(turn) * w.factor;
        int64_t a = w.interleaved ? 2 * i : i, b = w.interleaved ? 2 * i + 1 : w.half + i;
        cos[a] = cos[b] = c, sin[a] = -s, sin[b] = s;
      }
    }
  });
}

struct Best {
  int64_t place;
  float value;
};

inline bool larger(float a, float b) { return a > b || (std::isnan(a) && !std::isnan(b)); }  // NaN above all

// The first of the largest: the block that has it is found first, in registers, then its place in there.
inline Best best_of(const float* x, int64_t from, int64_t end) {
  constexpr int64_t STEP = 8 * LANES;
  Best best{from, x[from]};
  int64_t i = from;
  for (; i + STEP <= end; i += STEP) {
    F top = load(x + i), odd = zero();
    for (int g = 0; g < 8; g++) {
      F part = load(x + i + g * LANES);
      top = max(part, top);
      odd = where_nan(part, part, odd);
    }
    if (!larger(largest(top), best.value) && !std::isnan(sum(odd))) continue;
    for (int64_t j = i; j < i + STEP; j++) {
      if (larger(x[j], best.value)) best = {j, x[j]};
    }
  }
  for (; i < end; i++) {
    if (larger(x[i], best.value)) best = {i, x[i]};
  }
  return best;
}

void likeliest(const Likeliest& l) {
  if (l.rows == 0) return;
  Call call;
  int64_t pieces = std::max<int64_t>(1, std::min<int64_t>(l.width / WORTH, thread_count()));  // of a row
  auto found = static_cast<Best*>(call_scratch(0, l.rows * pieces * sizeof(Best)));
  parallel(l.rows * pieces, [&](int64_t task, int) {
    int64_t row = task / pieces, piece = task % pieces;
    found[task] = best_of(l.x + row * l.stride, l.width * piece / pieces, l.width * (piece + 1) / pieces);
  });
  for (int64_t row = 0; row < l.rows; row++) {
    Best top = found[row * pieces];
    for (int64_t piece = 1; piece < pieces; piece++) {
      if (larger(found[row * pieces + piece].value, top.value)) top = found[row * pieces + piece];
    }
    l.chosen[row] = std::isfinite(top.value) ? top.place : l.otherwise;
  }
}

// The k largest of p + bias, the largest first, of equal ones the first; NaN counts as the largest, as torch
// has it.
inline void choose(const float* p, const float* bias, int64_t experts, int64_t k, float* scores,
                   int64_t* chosen) {
  int64_t have = 0;
  for (int64_t e = 0; e < experts; e++) {
    float score = bias ? p[e] + bias[e] : p[e];
    if (have == k && !larger(score, scores[k - 1])) continue;
    int64_t at = have < k ? have++ : k - 1;
    for (; at > 0 && larger(score, scores[at - 1]); at--)
      scores[at] = scores[at - 1], chosen[at] = chosen[at - 1];
    scores[at] = score, chosen[at] = e;
  }
}

// p = softmax of a row of scores, in float32; one order of sums, whatever the other rows.
template <int32_t type>
inline void softmax_row(const void* scores, int64_t from, int64_t width, float* p) {
  F top = set1(-INFINITY), total = zero(), odd = zero();
  for (int64_t i = 0; i < width; i += LANES) {
    F part = part_of<type>(scores, from + i, width - i);
    if (width - i < LANES) part = keep_first(part, lanes_of(width - i), set1(-INFINITY));
    top = max(part, top);
    odd = where_nan(part, part, odd);
  }
  F largest_of_all = set1(largest(top));
  for (int64_t i = 0; i < width; i += LANES) {
    int many = lanes_of(width - i);
    F part = exp(sub(part_of<type>(scores, from + i, width - i), largest_of_all));
    if (many < LANES) part = keep_first(part, many, zero());
    store(p + i, part, many);
    total = add(total, part);
  }
  float factor = std::isnan(sum(odd)) ? NAN : 1.0f / sum(total);
  for (int64_t i = 0; i < width; i += LANES) {
    int many = lanes_of(width - i);
    store(p + i, mul(load(p + i, many), set1(factor)), many);
  }
}

void route(const Routing& r) {
  Call call;
  over_rows(r.tokens, 8 * r.experts, [&](int64_t first, int64_t end) {
    for (int64_t row = first; row < end; row++) {
      float *p = r.probabilities + row * r.experts, *w = r.weights + row * r.k;
      int64_t* chosen = r.chosen + row * r.k;
      with_type(r.type, [&](auto type) {
        softmax_row<decltype(type)::value>(r.scores, row * r.stride, r.experts, p);
      });
      choose(p, r.bias, r.experts, r.k, w, chosen);
      float total = 0.0f;
      for (int64_t i = 0; i < r.k; i++) total += w[i] = p[chosen[i]];
      if (!r.normalize) continue;
      if (total < r.floor) total = r.floor;
      for (int64_t i = 0; i < r.k; i++) w[i] /= total;
    }
  });
}

}  // namespace
}  // namespace ONEROOF_VARIANT
}  // namespace oneroof
