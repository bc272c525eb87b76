// Rows of a weight into panels and back (the layouts of abi.h). No arithmetic: bits move, any order of rows.

#pragma once

#include <algorithm>
#include <cstdint>

#include "abi.h"
#include "pool.h"

namespace oneroof {

// One panel's lanes `lane` .. `lane + count`, from rows that are `stride` elements apart.
template <class T, int inputs>
void pack_lanes(const T* rows, int64_t stride, int64_t lane, int64_t count, int64_t dim, T* panel) {
  for (int64_t k = 0; k < dim; k += inputs) {
    T* step = panel + k * 16;
    int64_t some = std::min<int64_t>(inputs, dim - k);
    for (int64_t r = 0; r < count; r++) {
      for (int64_t i = 0; i < some; i++) step[(lane + r) * inputs + i] = rows[r * stride + k + i];
    }
  }
}

template <class T, int inputs>
void unpack_lanes(const T* panel, int64_t lane, int64_t count, int64_t dim, T* rows) {
  for (int64_t k = 0; k < dim; k++) {
    const T* step = panel + k / inputs * inputs * 16 + k % inputs;
    for (int64_t r = 0; r < count; r++) rows[r * dim + k] = step[(lane + r) * inputs];
  }
}

// Four-bit values stand one a byte in rows, 0 .. 15.
inline void pack_nibbles(const uint8_t* rows, int64_t stride, int64_t lane, int64_t count, int64_t dim,
                         uint8_t* panel) {
  for (int64_t k = 0; k < dim; k++) {
    uint8_t* byte = panel + k / 8 * 64 + k % 4;
    int shift = k % 8 < 4 ? 0 : 4;
    for (int64_t r = 0; r < count; r++) {
      uint8_t& b = byte[(lane + r) * 4];
      b = static_cast<uint8_t>((b & (0xF0 >> shift)) | (rows[r * stride + k] << shift));
    }
  }
}

inline void unpack_nibbles(const uint8_t* panel, int64_t lane, int64_t count, int64_t dim, uint8_t* rows) {
  for (int64_t k = 0; k < dim; k++) {
    const uint8_t* byte = panel + k / 8 * 64 + k % 4;
    for (int64_t r = 0; r < count; r++) rows[r * dim + k] = (byte[(lane + r) * 4] >> (k % 8 < 4 ? 0 : 4)) & 15;
  }
}

inline int64_t panel_size(int64_t dim, int32_t kind) {
  constexpr int64_t inputs[] = {1, 2, 1, 4, 8}, bytes[] = {64, 64, 32, 64, 64};
  return (dim + inputs[kind] - 1) / inputs[kind] * bytes[kind];
}

// fn(panel, lane, count, row) for each panel that rows first .. first + count reach; row counts from `first`.
template <class Fn>
void each_panel(int64_t first, int64_t count, const Fn& fn) {
  int64_t begin = first / 16, end = (first + count + 15) / 16;
  Call call;
  parallel(end - begin, [&](int64_t task, int) {
    int64_t panel = begin + task, from = std::max(first, panel * 16), to = std::min(first + count, panel * 16 + 16);
    fn(panel, from - panel * 16, to - from, from - first);
  });
}

inline void pack_rows(const void* rows, int64_t stride, int64_t first, int64_t count, int64_t dim, int32_t kind,
                      void* panels) {
  int64_t size = panel_size(dim, kind);
  each_panel(first, count, [&](int64_t panel, int64_t lane, int64_t lanes, int64_t row) {
    auto to = static_cast<uint8_t*>(panels) + panel * size;
    auto words = static_cast<const uint32_t*>(rows) + row * stride;
    auto halves = static_cast<const uint16_t*>(rows) + row * stride;
    auto bytes = static_cast<const uint8_t*>(rows) + row * stride;
    switch (kind) {
      case FLOAT32: return pack_lanes<uint32_t, 1>(words, stride, lane, lanes, dim, reinterpret_cast<uint32_t*>(to));
      case BFLOAT16: return pack_lanes<uint16_t, 2>(halves, stride, lane, lanes, dim, reinterpret_cast<uint16_t*>(to));
      case FLOAT16: return pack_lanes<uint16_t, 1>(halves, stride, lane, lanes, dim, reinterpret_cast<uint16_t*>(to));
      case INT8: return pack_lanes<uint8_t, 4>(bytes, stride, lane, lanes, dim, to);
      default: return pack_nibbles(bytes, stride, lane, lanes, dim, to);
    }
  });
}

// Rows come out one after the other, `dim` elements each.
inline void unpack_rows(const void* panels, int64_t first, int64_t count, int64_t dim, int32_t kind, void* rows) {
  int64_t size = panel_size(dim, kind);
  each_panel(first, count, [&](int64_t panel, int64_t lane, int64_t lanes, int64_t row) {
    auto from = static_cast<const uint8_t*>(panels) + panel * size;
    auto words = static_cast<uint32_t*>(rows) + row * dim;
    auto halves = static_cast<uint16_t*>(rows) + row * dim;
    auto bytes = static_cast<uint8_t*>(rows) + row * dim;
    switch (kind) {
      case FLOAT32: return unpack_lanes<uint32_t, 1>(reinterpret_cast<const uint32_t*>(from), lane, lanes, dim, words);
      case BFLOAT16: return unpack_lanes<uint16_t, 2>(reinterpret_cast<const uint16_t*>(from), lane, lanes, dim, halves);
      case FLOAT16: return unpack_lanes<uint16_t, 1>(reinterpret_cast<const uint16_t*>(from), lane, lanes, dim, halves);
      case INT8: return unpack_lanes<uint8_t, 4>(from, lane, lanes, dim, bytes);
      default: return unpack_nibbles(from, lane, lanes, dim, bytes);
    }
  });
}

}  // namespace oneroof
