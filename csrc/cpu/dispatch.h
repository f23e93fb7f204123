// The CPU kernels as a table of functions, and its builds for several instruction sets.
// No torch header: csrc/onnx builds them for ONNX Runtime.
#pragma once

#include "fused_ops.h"
#include "selective_scan.h"
#include "ss2d_scan.h"

namespace mmvmamba {

enum class Io { kFloat, kBFloat16, kDouble };

// Kernels process the work items [begin, end). Results do not depend on how the items are split
// among threads.
struct SS2DKernels {
  // Between `proj` and its rows in the order and the type of the kernels. Items are directions of
  // samples.
  void (*pack)(const SS2DSizes&, const void* proj, void* rows, int64_t begin, int64_t end);
  void (*unpack)(const SS2DSizes&, const void* rows, void* proj, int64_t begin, int64_t end);
  void (*forward)(const SS2DForward&, int64_t begin, int64_t end);
  void (*backward)(const SS2DBackward&, int64_t begin, int64_t end);
};

struct SelectiveKernels {
  // B, C, bias and D may be null.
  void (*pack)(const SelectiveSizes&, const void* A, const void* B, const void* C, const void* bias,
               const void* D, void* params);
  void (*forward)(const SelectiveForward&, int64_t begin, int64_t end);
  void (*backward)(const SelectiveBackward&, int64_t begin, int64_t end);
};

// Items are rows. Null for float64.
struct FusedKernels {
  void (*layer_norm)(const NormRows&, int64_t begin, int64_t end);
  void (*bias_gelu)(const BiasRows&, int64_t begin, int64_t end);
  void (*depthwise_silu)(const DepthwiseMaps&, int64_t begin, int64_t end);
};

struct Kernels {
  int64_t lanes;  // channels of a vector
  SS2DKernels ss2d;
  SelectiveKernels selective;
  FusedKernels fused;
};

namespace isa_default {
Kernels kernels(Io io);
}
#if defined(__x86_64__)
namespace isa_avx2 {
Kernels kernels(Io io);
}
namespace isa_avx512 {
Kernels kernels(Io io);
}
#endif

// The widest instruction set of this processor: "default", "avx2" or "avx512".
const char* cpu_isa();

// Its kernels.
Kernels best_kernels(Io io);

// Whether products of bfloat16 take less time than those of float32, as far as is known.
bool has_fast_bfloat16();

}  // namespace mmvmamba
