// What training asks of the kernels: products of plain matrices, and what stands between those of experts.
// gemm.py mirrors the structures, field by field.
//
// Letters: M rows, N columns, K steps of a product; T tokens, R rows sorted by expert, k chosen experts, D
// width of the model, F of an expert.

#pragma once

#include <cstdint>

namespace oneroof {

enum Cut : int32_t { WHOLE = 0, ROWS = 1, STEPS = 2 };  // what `bounds` cuts into groups

// C[M, N] = A[M, K] B[K, N] (+ bias), summed in float32. Of A and of B one of the two strides is 1.
// Cut by rows, group g has rows bounds[g] .. bounds[g + 1] of A and C, and a B of its own. Cut by steps, it
// has these columns of A and rows of B, and a C of its own, which is 0 where the group is empty.
struct Gemm {
  const void* a;           // (m, k) at m * a_row + k * a_step
  const void* b;           // (k, n) at k * b_step + n * b_column, groups b_group apart
  void* c;                 // [M, N], rows c_row apart, groups c_group apart
  const void* bias;        // [N] of c's type; null: none
  const int64_t* bounds;   // [groups + 1]; null: WHOLE
  const int64_t* a_index;  // [M] (cut by rows) or [K] (by steps): where A's row or step is; null: in place
  const int64_t* b_index;  // [K], cut by steps: likewise of B
  int64_t rows, columns, steps, groups;
  int64_t a_row, a_step, b_step, b_column, b_group, c_row, c_group;  // in elements
  int32_t a_type, b_type, c_type, cut;
};

// y_t = sum_j w_tj * x_r with r = place_tj, in the order of j.
struct Gather {
  const void* x;         // [R, D], contiguous
  void* y;               // [T, D], contiguous
  const float* weights;  // [T, k]; null: 1
  const int64_t* place;  // [T, k]
  int64_t tokens, k, dim;
  int32_t x_type, y_type;
};

// Backward of h = silu(g) * u, whose result went on with a weight w a row: y = w * (h W). Takes d = dy W^T.
struct Gate {
  const void* gate_up;   // [R, 2F]: g, u
  const float* d;        // [R, F]
  const float* weights;  // [R]
  void* d_gate_up;       // [R, 2F]
  void* weighed;         // [R, F] w * h
  float* d_weights;      // [R] sum(d * h)
  int64_t rows, width;
  int32_t type;          // of all but the float32 ones
};

struct Training {
  void (*multiply)(const Gemm&);
  void (*gather)(const Gather&);
  void (*gate)(const Gate&);
};

}  // namespace oneroof
