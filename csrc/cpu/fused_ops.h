// Arguments of the fused CPU kernels.
#pragma once

#include "../scan_common.h"

namespace mmvmamba {

// Rows of `channels` elements of the I/O type, and parameters in float32.
struct NormRows {
  int64_t channels;
  const void* x;
  const void* y;       // added to x, or null
  const float* shift;  // [channels]
  const float *weight, *bias;
  float eps;
  void* sum;  // x + y + shift, or null where y is
  void* out;
};

struct BiasRows {
  int64_t channels;
  const float* bias;
  void* x;
};

// Maps (N, H, W, channels) of the I/O type; an item of work is a row of positions.
struct DepthwiseMaps {
  int64_t height, width, channels;
  const void* x;
  const float* weight;  // [9][channels], padded to whole vectors as `bias`
  const float* bias;    // [channels]
  void* y;
};

}  // namespace mmvmamba
