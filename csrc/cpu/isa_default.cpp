// The CPU kernels built for what every processor of the compiler's target has (SSE2 on x86-64, NEON
// on 64-bit Arm).
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <new>
#include <type_traits>
#include <utility>

#include "dispatch.h"

#define MMVMAMBA_VECTOR_BYTES 16

namespace mmvmamba {
namespace isa_default {
namespace {

// clang-format off: the order matters
#include "vec.h"
#include "scan_chunk.h"
#include "selective_scan_impl.h"
#include "ss2d_scan_impl.h"
#include "fused_ops_impl.h"
// clang-format on

}  // namespace

#include "dispatch_impl.h"

}  // namespace isa_default
}  // namespace mmvmamba
