// The CPU kernels built for what every processor of the compiler's target has (SSE2 on x86-64, NEON
// on 64-bit Arm).
//
// The instruction set is switched on for this file's own functions only, after every header that
// other files share: an inline function of the standard library compiled for it here could be the
// one that the linker keeps for all, and would crash an older processor.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#include <type_traits>
#include <utility>

#include "kernels.h"

#define MMVMAMBA_VECTOR_BYTES 16

namespace mmvmamba {
namespace isa_default {
namespace {

// clang-format off: the order matters
#include "vec.h"
#include "chunk.h"
#include "selective_scan_impl.h"
#include "ss2d_scan_impl.h"
// clang-format on

}  // namespace

#include "kernels_impl.h"

}  // namespace isa_default
}  // namespace mmvmamba
