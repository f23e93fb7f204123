// How a call is split into blocks and launches.
#pragma once

#include <vector>

#include "scan_device.h"

namespace mmvmamba {

// The kernels' name for a dtype. RuntimeError for one that they do not take.
DeviceIo device_io(ScalarType type);

// The split of a forward or a backward, from the sizes of the problem. RuntimeError if the device
// lacks the shared memory for the smallest block.
struct ScanSizes {
  int64_t batch, height, width, length;
  int64_t channels, group_channels, states, rank, directions;
  bool softplus, constant_B, constant_C;
};
ScanPlan plan_scan(const ScanSizes& sizes, DeviceIo io, const ScanDevice& device, bool is_map,
                   bool backward);

// The elements of the states that a forward saves for the backward.
int64_t state_count(const ScanSizes& sizes);

// Launches everything that a call needs, over all directions. `args` must have its working memory.
void launch_scan(const ScanDevice& device, ScanForward args, const std::vector<int64_t>& orders);
void launch_scan(const ScanDevice& device, ScanBackward args, const std::vector<int64_t>& orders);
// The first direction of the first launch, the only one in which the gradient of D is written.
int64_t first_direction(const std::vector<int64_t>& orders);

// Working memory: `decay` and `state` of a walk's tiles, if it is split, and dt_weight as the
// tensor cores take it. `saved`: a forward's states for its backward, which then are its `state`;
// or empty.
struct ScanScratch {
  Tensor tiles, weight;
  ScanScratch(const Tensor& like, ScanCall& args, const Tensor& saved);
};

// Views of tensors.
MapView map_nhwc(const Tensor& value);  // (N, H, W, C) contiguous
MapView map_ncl(const Tensor& value);   // (N, C, L) of any strides
int32_t narrow(int64_t stride);         // RuntimeError if it is too large

bool is_aligned(const Tensor& value, int64_t bytes);

// A gradient as `count` parts in the sums' dtype. A single part has no dimension of its own.
Tensor allocate_partial_sums(const Tensor& like, int64_t count, Shape sizes, ScalarType acc);
// Their sum in a fixed order.
Tensor reduce_partial_sums(const Tensor& parts, int64_t count, ScalarType type);

}  // namespace mmvmamba
