// Rows of a weight in panels, as numbers: the embedding, from the same table that the head multiplies by.

#pragma once

#include "matmul.h"

namespace oneroof {
namespace ONEROOF_VARIANT {
namespace {

inline float number_at(const Weight& w, const Layout& l, const uint8_t* panel, int64_t scales, int lane, int64_t k) {
  switch (w.kind) {
    case FLOAT32: return reinterpret_cast<const float*>(panel)[k * LANES + lane];
    case BFLOAT16:
      return bf16_to_float(reinterpret_cast<const uint16_t*>(panel)[(k / 2 * LANES + lane) * 2 + k % 2]);
    case FLOAT16: return _cvtsh_ss(reinterpret_cast<const uint16_t*>(panel)[k * LANES + lane]);
    default: break;
  }
  int64_t at = scales + k / l.group * LANES + lane;
  if (w.kind == INT8) return static_cast<int8_t>(panel[(k / 4 * LANES + lane) * 4 + k % 4]) * w.scale[at];
  int nibble = panel[(k / 8 * LANES + lane) * 4 + k % 4] >> (k % 8 < 4 ? 0 : 4) & 15;
  return (nibble - (w.zero ? w.zero[at] : 8)) * w.scale[at];
}

// y[i] = row tokens[i] of the weight, [count, K]; 0, and nothing done, where one of them is no row.
inline int lookup(const Weight& w, const int64_t* tokens, int64_t count, void* y, int32_t y_type) {
  for (int64_t i = 0; i < count; i++) {
    if (tokens[i] < 0 || tokens[i] >= w.rows) return 0;
  }
  Call call;
  Layout l(w);
  parallel(count, [&](int64_t i, int) {
    int64_t panel = tokens[i] / LANES;
    int lane = static_cast<int>(tokens[i] % LANES);
    const uint8_t* data = w.data + panel * l.panel_bytes;
    alignas(64) float some[LANES];
    for (int64_t k = 0; k < w.dim; k += LANES) {
      int n = lanes_of(w.dim - k);
      for (int j = 0; j < n; j++) some[j] = number_at(w, l, data, panel * l.groups * LANES, lane, k + j);
      store_as(y, i * w.dim + k, y_type, load(some, n), n);
    }
  });
  return 1;
}

}  // namespace
}  // namespace ONEROOF_VARIANT
}  // namespace oneroof
