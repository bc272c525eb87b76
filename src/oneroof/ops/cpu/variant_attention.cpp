// Attention for one instruction set, in a file of its own: it shares no names with the products, and compiles beside them.

#include "abi.h"
#include "pool.h"
#include "simd.h"

#include "attention.h"

namespace oneroof {
namespace ONEROOF_VARIANT {

void attend(const Attention& a) { attention(a); }

}  // namespace ONEROOF_VARIANT
}  // namespace oneroof
