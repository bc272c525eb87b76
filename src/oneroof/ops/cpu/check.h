// A small run of the products with known results: does this instruction set work here at all?

#pragma once

#include "matmul.h"
#include "pack.h"

namespace oneroof {
namespace ONEROOF_VARIANT {
namespace {

constexpr int64_t CHECK_N = 40, CHECK_K = 72, CHECK_T = 14;

inline int value_at(int64_t row, int64_t k) { return static_cast<int>((row * 7 + k * 13 + 5) % 15) - 7; }

// 0 where y is x @ w^T for whole numbers, which every form computes exactly.
inline int check_product(int32_t kind, int32_t x_type, int32_t input) {
  alignas(64) static uint8_t panels[3 * 64 * CHECK_K], rows[CHECK_N * CHECK_K * 4];
  alignas(64) static float scale[48], y[CHECK_T * CHECK_N], x[CHECK_T * CHECK_K];
  static uint16_t narrow[CHECK_T * CHECK_K];
  for (int64_t n = 0; n < CHECK_N; n++) {
    scale[n] = 1.0f;
    for (int64_t k = 0; k < CHECK_K; k++) {
      float value = static_cast<float>(value_at(n, k));
      uint32_t bits;
      std::memcpy(&bits, &value, 4);
      if (kind == FLOAT32) reinterpret_cast<float*>(rows)[n * CHECK_K + k] = value;
      if (kind == BFLOAT16) reinterpret_cast<uint16_t*>(rows)[n * CHECK_K + k] = static_cast<uint16_t>(bits >> 16);
      if (kind == INT8) rows[n * CHECK_K + k] = static_cast<uint8_t>(value_at(n, k));
      if (kind == INT4) rows[n * CHECK_K + k] = static_cast<uint8_t>(value_at(n, k) + 8);
    }
  }
  float largest = kind < INT8 || input != AS_IT_IS ? 127.0f : 32639.0f;  // so that every scale is 1
  for (int64_t i = 0; i < CHECK_T * CHECK_K; i++) {
    x[i] = i % CHECK_K == 0 ? largest : static_cast<float>(value_at(i / CHECK_K + 3, i));
    uint32_t bits;
    std::memcpy(&bits, &x[i], 4);
    narrow[i] = static_cast<uint16_t>(bits >> 16);
  }
  std::memset(panels, 0, sizeof panels);
  pack_rows(rows, CHECK_K, 0, CHECK_N, CHECK_K, kind, panels);
  Weight w{panels, kind < INT8 ? nullptr : scale, nullptr, kind, 0, CHECK_N, CHECK_K, 1};
  int wrong = 0;
  for (int64_t tokens : {int64_t{1}, int64_t{3}, CHECK_T}) {
    const void* in = x_type == FLOAT32 ? static_cast<const void*>(x) : narrow;
    linear({&w, in, y, nullptr, tokens, CHECK_K, CHECK_N, x_type, FLOAT32, input, 0.0f});
    for (int64_t t = 0; t < tokens; t++) {
      for (int64_t n = 0; n < CHECK_N; n++) {
        float right = 0;
        for (int64_t k = 0; k < CHECK_K; k++) right += x[t * CHECK_K + k] * static_cast<float>(value_at(n, k));
        wrong += y[t * CHECK_N + n] != right;
      }
    }
  }
  return wrong;
}

inline int check() {
  return check_product(FLOAT32, FLOAT32, AS_IT_IS) + check_product(BFLOAT16, BFLOAT16, AS_IT_IS) +
         check_product(INT8, FLOAT32, AS_IT_IS) + check_product(INT8, FLOAT32, DYNAMIC) +
         check_product(INT4, FLOAT32, AS_IT_IS);
}

}  // namespace
}  // namespace ONEROOF_VARIANT
}  // namespace oneroof
