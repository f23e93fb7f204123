// The CPU kernels built for x86-64 with AVX2 and FMA.
//
// The instruction set is switched on for this file's own functions only, after every header that
// other files share: an inline function of the standard library compiled for it here could be the
// one that the linker keeps for all, and would crash an older processor.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <new>
#include <type_traits>
#include <utility>

#include "dispatch.h"

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,bmi,bmi2"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,bmi,bmi2")
#endif

#define MMVMAMBA_VECTOR_BYTES 32

namespace mmvmamba {
namespace isa_avx2 {
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

}  // namespace isa_avx2
}  // namespace mmvmamba

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
