// What crosses the border to Python: plain structures and one table of functions for each instruction set.
//
// Letters: T tokens, K inputs, N outputs, E experts, H heads, k kv heads, d head dim, S sequences. All memory is the
// caller's; nothing is kept beyond a call. library.py mirrors the structures, field by field.

#pragma once

#include <cstdint>

namespace oneroof {

enum Kind : int32_t { FLOAT32 = 0, BFLOAT16 = 1, FLOAT16 = 2, INT8 = 3, INT4 = 4 };

// A weight in panels: 16 outputs side by side, which is one register. Panel p of expert e begins at
// data + (e * ceil(N / 16) + p) * panel_bytes; missing outputs and inputs are 0. Inside a panel:
//   float32, float16: [K][16]            bfloat16: [K/2][16][2]            int8: [K/4][16][4]
//   int4: [K/8][16][4 bytes], byte b of step s holds inputs 8s + b (low nibble) and 8s + 4 + b (high nibble)
struct Weight {
  const uint8_t* data;
  const float* scale;   // [E, N/16, groups, 16]; null for floats
  const uint8_t* zero;  // as scale: int4's zero points; null: 8 for all
  int32_t kind;
  int32_t group;  // inputs that share a scale; 0: all K. A multiple of 8
  int64_t rows;   // N
  int64_t dim;    // K
  int64_t experts;
};

// How the input of a product is read: as it is, or as int8 with a scale for each token (found from its largest value)
// or for the whole tensor (given).
enum Input : int32_t { AS_IT_IS = 0, DYNAMIC = 1, STATIC = 2 };

struct Product {
  const Weight* weight;
  const void* x;      // [T, K]
  void* y;            // [T, N]; of gated: [T, N / 2]
  const void* bias;   // [N] or null, of x's type
  int64_t tokens, x_stride, y_stride;  // strides in elements
  int32_t x_type, y_type, input;
  float input_scale;  // STATIC
};

struct Mixture {
  const Weight* gate_up;  // [E][2F, D]
  const Weight* down;     // [E][D, F]
  const void* x;          // [T, D]
  void* y;                // [T, D]
  const float* weights;   // [T, k]
  const int64_t* chosen;  // [T, k]
  int64_t first;          // the number of the first expert that is here; what others add is not added
  int64_t tokens, k, x_stride, y_stride;
  int32_t x_type, y_type, input;
  float input_scale, hidden_scale;  // STATIC: of x, and of what goes into down
};

struct Attention {
  const void* q;  // [T, H, d], token rows q_stride elements apart; k and v alike
  const void* k;
  const void* v;
  void* out;  // [T, H, d], contiguous
  int64_t q_stride, k_stride, v_stride;
  int64_t tokens, sequences, heads, kv_heads, dim;
  const int32_t* bounds;     // [S + 1] rows of each sequence
  const int64_t* lengths;    // [S] keys of each sequence, those of this batch included
  const int64_t* positions;  // [T]
  const int64_t* slots;      // [T] where new keys and values go; null: there is no cache
  const int64_t* table;      // [S, table_width] pages
  int64_t table_width, page_size;
  void* key_pool;  // [pages, page_size, k, d]
  void* value_pool;
  float* key_scales;  // [pages, page_size, k] of int8 pools
  float* value_scales;
  int64_t window;  // keys that a query sees; 0: all
  int32_t type, pool_type, causal;
  float scale;  // of q k^T
};

struct Norm {
  const void* x;         // [T, D]
  const void* residual;  // [T, D] or null: added first
  const void* weight;    // [D], of x's type
  void* y;
  void* total;  // [T, D] x + residual; null where there is no residual
  int64_t tokens, dim, x_stride, residual_stride;
  int32_t type;
  float eps;
};

struct Heads {  // norm of q and k, rope, logn scale: in place, on the fused qkv row
  void* qkv;  // [T, (H + 2k) * d], rows `stride` elements apart; v is left alone
  int64_t tokens, stride, heads, kv_heads, dim;
  const float* cos;          // [T, d]
  const float* sin;          // [T, d], with the sign of the rotation
  const void* q_norm;        // [d] or null
  const void* k_norm;
  const float* query_scale;  // [T] or null
  int32_t type, interleaved;
  float eps;
};

struct Swiglu {
  const void* gate_up;  // [T, 2F], rows `stride` elements apart
  void* y;              // [T, F]
  int64_t tokens, width, stride;
  int32_t type;
};

struct Routing {
  const void* scores;    // [T, E], rows `stride` elements apart
  const float* bias;     // [E], added where experts are chosen; or null
  float* probabilities;  // [T, E] softmax of the scores
  float* weights;        // [T, k]
  int64_t* chosen;       // [T, k]
  int64_t tokens, experts, k, stride;
  int32_t type, normalize;
  float floor;  // of the sum that weights are divided by
};

struct Waves {
  const float* turns;  // [T, h] radians
  float* cos;          // [T, 2h] each number twice: h apart, or side by side where interleaved
  float* sin;          // likewise, the first of both with its sign changed
  int64_t tokens, half;
  int32_t interleaved;
  float factor;  // of both
};

struct Likeliest {
  const float* x;   // [S, V], rows `stride` elements apart
  int64_t* chosen;  // [S] the place of the largest, the first of equal ones; `otherwise` where it is not finite
  int64_t rows, width, stride, otherwise;
};

struct Drawing {
  const float* x;            // [S, V] logits, rows `stride` elements apart
  const float* temperature;  // [S]
  const int64_t* seeds;      // [S]
  const int64_t* positions;  // [S]
  int64_t* chosen;           // [S]
  int64_t rows, width, stride;
};

struct Blend {
  const void* x;     // [T, D]
  const void* y;     // [T, D]
  const void* gate;  // [T], `gate_stride` elements apart, or null: 1
  void* out;         // [T, D] x + sigmoid(gate) * y
  int64_t tokens, dim, x_stride, y_stride, gate_stride;
  int32_t type;
};

struct Board;  // board.h

struct Total {  // over the ranks of a board
  Board* board;
  const void* x;  // [T, D]
  void* out;      // [T, D]
  int64_t tokens, dim;
  int32_t x_type, out_type;
};

struct Columns {  // of the ranks of a board, side by side
  Board* board;
  const float* x;  // [R, N of this rank]
  float* out;      // [R, whole]; null: others want them
  int64_t rows, each, whole;  // rank r has the columns r * each .. (r + 1) * each, or to the end
};

// A forward as the kernels that it calls: those of the border that take one structure.
struct Command {
  void (*kernel)(const void*);
  const void* structure;
};
struct Patch {  // *field = values[value] + offset, before the first command
  int64_t* field;
  int64_t value, offset;
};

struct Training;  // training.h

struct Kernels {
  const char* name;
  void (*linear)(const Product&);
  void (*gated)(const Product&);  // silu(first half of N) * second half; N / 2 is a multiple of 16
  void (*mixture)(const Mixture&);
  void (*attention)(const Attention&);
  void (*rms_norm)(const Norm&);
  void (*heads)(const Heads&);
  void (*swiglu)(const Swiglu&);
  int (*lookup)(const Weight&, const int64_t* tokens, int64_t count, void* y, int32_t y_type);  // 0: a token is none
  void (*waves)(const Waves&);
  void (*likeliest)(const Likeliest&);
  void (*draw)(const Drawing&);
  void (*route)(const Routing&);
  void (*blend)(const Blend&);
  void (*total)(const Total&);
  void (*side_by_side)(const Columns&);
  double (*read_memory)(const void* data, int64_t bytes);
  double (*multiply_add)(int64_t rounds);
  int (*check)();  // 0: a small run of each kernel gave the right numbers
  const Training* training;
};

}  // namespace oneroof
