// A token of each row, drawn by its probability: the largest of logits / temperature + noise.
//
// Noise is what ops/noise.py makes of seed, position and token: the same bits of hash, the same float32 steps but for the
// logarithms, which are good to two units of the last place. Rows and pieces of rows do not know each other.

#pragma once

#include <algorithm>

#include "abi.h"
#include "pointwise.h"
#include "pool.h"
#include "simd.h"

namespace oneroof {
namespace ONEROOF_VARIANT {
namespace {

// log(x) for positive normal numbers (the polynomial of Cephes' logf).
inline F log(F x) {
  I bits = as_int(x);
  F mantissa = as_float(add(band(bits, set1(0x7FFFFF)), set1(0x3F800000)));  // 1 .. 2
  F exponent = to_float(sub(right_unsigned<23>(bits), set1(127)));
  F high = set1(1.41421356f);
  exponent = where_less(high, mantissa, add(exponent, set1(1.0f)), exponent);
  F r = sub(where_less(high, mantissa, mul(mantissa, set1(0.5f)), mantissa), set1(1.0f)), square = mul(r, r);
  F p = set1(7.0376836292e-2f);
  p = fma(p, r, set1(-1.1514610310e-1f));
  p = fma(p, r, set1(1.1676998740e-1f));
  p = fma(p, r, set1(-1.2420140846e-1f));
  p = fma(p, r, set1(1.4249322787e-1f));
  p = fma(p, r, set1(-1.6668057665e-1f));
  p = fma(p, r, set1(2.0000714765e-1f));
  p = fma(p, r, set1(-2.4999993993e-1f));
  p = fma(p, r, set1(3.3333331174e-1f));
  F y = fma(exponent, set1(-2.12194440e-4f), mul(mul(p, r), square));
  return fma(exponent, set1(0.693359375f), add(r, fma(square, set1(-0.5f), y)));
}

inline uint64_t mix64(uint64_t x) {  // a step of splitmix64
  x += 0x9E3779B97F4A7C15u;
  x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9u;
  x = (x ^ x >> 27) * 0x94D049BB133111EBu;
  return x ^ x >> 31;
}

inline I mix32(I x) {  // lowbias32
  x = mul(bxor(x, right_unsigned<16>(x)), set1(0x7FEB352D));
  x = mul(bxor(x, right_unsigned<15>(x)), set1(static_cast<int32_t>(0x846CA68Bu)));
  return bxor(x, right_unsigned<16>(x));
}

// Standard Gumbel noise of sixteen tokens: -log(-log1p(-u)), where log1p(-u) is log(w) * u / (1 - w) for w = 1 - u.
inline F gumbel(I ids, I low, I high) {
  I bits = band(mix32(add(mix32(bxor(ids, low)), high)), set1(0x7FFFFFFF));
  F u = min(mul(add(to_float(bits), set1(0.5f)), set1(0x1p-31f)), set1(1.0f - 0x1p-24f));
  F w = sub(set1(1.0f), u), rest = sub(set1(1.0f), w);
  F waits = mul(sub(zero(), log(w)), div(u, max(rest, set1(0x1p-25f))));
  return sub(zero(), log(where_less(zero(), rest, waits, u)));
}

// The best of tokens from .. end - 1 of a row, the first of equal ones; what is no number is passed over.
inline Best best_draw(const Drawing& d, int64_t row, int64_t from, int64_t end) {
  alignas(64) static const int32_t COUNT[LANES] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  uint64_t key = mix64(mix64(static_cast<uint64_t>(d.seeds[row])) ^ static_cast<uint64_t>(d.positions[row]));
  I low = set1(static_cast<int32_t>(key)), high = set1(static_cast<int32_t>(key >> 32)), count = load(COUNT);
  const float* x = d.x + row * d.stride;
  F temperature = set1(d.temperature[row]), best = set1(-INFINITY), place = zero();
  for (int64_t i = from; i < end; i += LANES) {
    I ids = add(set1(static_cast<int32_t>(i)), count);
    F value = add(div(load(x + i, lanes_of(end - i)), temperature), gumbel(ids, low, high));
    value = keep_first(value, lanes_of(end - i), set1(-INFINITY));
    place = where_less(best, value, to_float(sub(ids, set1(static_cast<int32_t>(from)))), place);
    best = where_less(best, value, value, best);
  }
  alignas(64) float values[LANES], places[LANES];
  store(values, best), store(places, place);
  Best found{from, -INFINITY};
  for (int i = 0; i < LANES; i++) {
    int64_t at = from + static_cast<int64_t>(places[i]);
    if (values[i] > found.value || (values[i] == found.value && at < found.place)) found = {at, values[i]};
  }
  return found;
}

void draw(const Drawing& d) {
  if (d.rows == 0) return;
  Call call;
  int64_t pieces = std::max<int64_t>(1, std::min<int64_t>(d.width / 4096, thread_count()));  // of a row
  auto found = static_cast<Best*>(call_scratch(0, d.rows * pieces * sizeof(Best)));
  parallel(d.rows * pieces, [&](int64_t task, int) {
    int64_t row = task / pieces, piece = task % pieces;
    found[task] = best_draw(d, row, d.width * piece / pieces, d.width * (piece + 1) / pieces);
  });
  for (int64_t row = 0; row < d.rows; row++) {
    Best top = found[row * pieces];
    for (int64_t piece = 1; piece < pieces; piece++) {
      if (found[row * pieces + piece].value > top.value) top = found[row * pieces + piece];
    }
    d.chosen[row] = top.place;
  }
}

}  // namespace
}  // namespace ONEROOF_VARIANT
}  // namespace oneroof
