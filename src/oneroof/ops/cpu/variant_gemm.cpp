// Training for one instruction set: it shares no names with the products of packed weights.

#include "abi.h"
#include "pool.h"
#include "simd.h"
#include "training.h"

#include "gemm.h"
#include "mixing.h"

namespace oneroof {
namespace ONEROOF_VARIANT {

extern const Training training;
const Training training = {multiply, gather, gate};

}  // namespace ONEROOF_VARIANT
}  // namespace oneroof
