// The tile instructions in plain C++, after the pseudo-code of Intel's manual, for machines that lack them.
//
// Takes over the names of the compiler's header where ONEROOF_EMULATE_AMX is defined. What a processor
// refuses ends the process with a word.

#pragma once

#include <immintrin.h>

#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace oneroof {
namespace ONEROOF_VARIANT {
namespace {
namespace tmm {

struct Tile {
  int rows, bytes;  // 0: not configured
  alignas(64) uint8_t row[16][64];
};

thread_local Tile tiles[8];
thread_local bool configured;

inline void require(bool right, const char* rule) {
  if (right) return;
  std::fprintf(stderr, "emulated AMX: %s\n", rule);
  std::abort();
}

inline Tile& tile(int t) {
  require(configured, "no tile is configured");
  require(t >= 0 && t < 8, "there are eight tiles");
  require(tiles[t].rows > 0, "the tile is not configured");
  return tiles[t];
}

inline void release() {
  std::memset(tiles, 0, sizeof tiles);
  configured = false;
}

inline void load_config(const void* memory) {
  auto config = static_cast<const uint8_t*>(memory);
  require(config[0] == 1, "there is one palette");
  for (int i = 1; i < 16; i++) require(config[i] == 0, "the first row and what is reserved are 0");
  release();
  configured = true;
  for (int t = 0; t < 16; t++) {
    uint16_t bytes;
    std::memcpy(&bytes, config + 16 + 2 * t, 2);
    int rows = config[48 + t];
    require(t < 8 || (bytes == 0 && rows == 0), "there are eight tiles");
    require(rows <= 16 && bytes <= 64, "a tile has 16 rows of 64 bytes at most");
    require((rows == 0) == (bytes == 0), "a tile has rows and bytes, or neither");
    if (t < 8) tiles[t].rows = rows, tiles[t].bytes = bytes;
  }
}

inline void zero(int t) { std::memset(tile(t).row, 0, sizeof tiles[t].row); }

inline void load(int t, const void* base, int64_t stride) {
  zero(t);
  for (int r = 0; r < tile(t).rows; r++) {
    std::memcpy(tiles[t].row[r], static_cast<const uint8_t*>(base) + r * stride, tiles[t].bytes);
  }
}

inline void store(int t, void* base, int64_t stride) {
  for (int r = 0; r < tile(t).rows; r++) {
    std::memcpy(static_cast<uint8_t*>(base) + r * stride, tiles[t].row[r], tiles[t].bytes);
  }
}

inline void check_dot(int sum, int a, int b) {
  require(sum != a && sum != b && a != b, "the tiles of a product are three");
  require(tile(sum).rows == tile(a).rows, "sum and A have the same rows");
  require(tile(sum).bytes == tile(b).bytes, "sum and B have the same columns");
  require(tile(a).bytes == tile(b).rows * 4, "A has as many columns as B has rows");
  require(tile(sum).bytes % 4 == 0 && tile(a).bytes % 4 == 0, "columns are of four bytes");
}

inline void dpbssd(int sum, int a, int b) {
  check_dot(sum, a, b);
  for (int m = 0; m < tiles[sum].rows; m++) {
    auto out = reinterpret_cast<uint32_t*>(tiles[sum].row[m]);
    auto x = reinterpret_cast<const int8_t*>(tiles[a].row[m]);
    for (int k = 0; k < tiles[a].bytes / 4; k++) {
      auto w = reinterpret_cast<const int8_t*>(tiles[b].row[k]);
      for (int n = 0; n < tiles[sum].bytes / 4; n++) {
        int32_t dot = 0;
        for (int i = 0; i < 4; i++) dot += x[4 * k + i] * w[4 * n + i];
        out[n] += static_cast<uint32_t>(dot);  // without saturation
      }
    }
  }
}

// Denormal numbers are 0, going in and coming out, whatever MXCSR says.
inline float flushed(float x) { return std::fabs(x) < FLT_MIN ? std::copysign(0.0f, x) : x; }

inline float wide(uint16_t x) { return flushed(bf16_to_float(x)); }

inline void dpbf16ps(int sum, int a, int b) {
  check_dot(sum, a, b);
  for (int m = 0; m < tiles[sum].rows; m++) {
    auto out = reinterpret_cast<float*>(tiles[sum].row[m]);
    auto x = reinterpret_cast<const uint16_t*>(tiles[a].row[m]);
    float even[16] = {}, odd[16] = {};
    for (int k = 0; k < tiles[a].bytes / 4; k++) {
      auto w = reinterpret_cast<const uint16_t*>(tiles[b].row[k]);
      for (int n = 0; n < tiles[sum].bytes / 4; n++) {
        even[n] = flushed(std::fma(wide(x[2 * k]), wide(w[2 * n]), even[n]));
        odd[n] = flushed(std::fma(wide(x[2 * k + 1]), wide(w[2 * n + 1]), odd[n]));
      }
    }
    for (int n = 0; n < tiles[sum].bytes / 4; n++) {
      out[n] = flushed(flushed(out[n]) + flushed(even[n] + odd[n]));
    }
  }
}

}  // namespace tmm
}  // namespace
}  // namespace ONEROOF_VARIANT
}  // namespace oneroof

#undef _tile_loadd
#undef _tile_stored
#undef _tile_zero
#undef _tile_dpbssd
#undef _tile_dpbf16ps
#define _tile_loadconfig(config) tmm::load_config(config)
#define _tile_release() tmm::release()
#define _tile_zero(t) tmm::zero(t)
#define _tile_loadd(t, base, stride) tmm::load(t, base, stride)
#define _tile_stored(t, base, stride) tmm::store(t, base, stride)
#define _tile_dpbssd(sum, a, b) tmm::dpbssd(sum, a, b)
#define _tile_dpbf16ps(sum, a, b) tmm::dpbf16ps(sum, a, b)
