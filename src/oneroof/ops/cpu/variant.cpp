// All kernels for one instruction set: compiled once for each, with its own flags and ONEROOF_VARIANT as its name.

#include "abi.h"
#include "pool.h"
#include "simd.h"

#include "matmul.h"
#include "amx.h"
#include "mixture.h"
#include "lookup.h"
#include "pointwise.h"
#include "draw.h"
#include "ranks.h"
#include "check.h"
#include "probe.h"

#define ONEROOF_TEXT(x) #x
#define ONEROOF_NAME(x) ONEROOF_TEXT(x)

namespace oneroof {
namespace ONEROOF_VARIANT {

void attend(const Attention&);  // variant_attention.cpp
extern const Training training;  // variant_gemm.cpp

extern const Kernels kernels;
const Kernels kernels = {
    ONEROOF_NAME(ONEROOF_VARIANT), linear, gated, mixture, attend, rms_norm, heads,
    swiglu, lookup, waves, likeliest, draw, route, blend, total,
    side_by_side, read_memory, multiply_add, check, &training,
};

}  // namespace ONEROOF_VARIANT
}  // namespace oneroof
