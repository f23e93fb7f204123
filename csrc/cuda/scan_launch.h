// How a call is split into blocks and launches.
#pragma once

#include <vector>

#include "scan_device.h"

namespace mmvmamba {

// The kernels' name for a dtype. RuntimeError for one that they do not take.
DeviceIo device_io(ScalarType type);

// Fills in lanes, blocks and segments of a backward from the sizes of the problem. Raises
// RuntimeError if the device lacks the shared memory for the smallest block.
void split_backward(ScanSizes& sizes, ScalarType io, const ScanDevice& device);

// The split of a forward, from the sizes of the problem. RuntimeError as above.
ScanPlan plan_forward(const ScanSizes& sizes, ScalarType io, const ScanDevice& device);

// Launches everything that a call needs, over all directions. Working memory is set.
void launch_forward(const ScanDevice& device, ScanForward args, const std::vector<int64_t>& orders);
void launch_backward(const ScanDevice& device, ScanBackward args,
                     const std::vector<int64_t>& orders);

// Working memory of the forward: `decay` and `state` of a walk's segments, if it has several.
Tensor empty_segments(const Tensor& like, const ScanPlan& plan, ScalarType acc);
void set_segments(ScanForward& args, const Tensor& segments);

// Working memory: `carry` and `segment_dt` of ScanBackward.
struct ScanScratch {
  Tensor carry, segment_dt;
  ScanScratch(const Tensor& like, const ScanSizes& sizes, ScalarType acc);
};

// Views of tensors.
MapView map_nhwc(const Tensor& value);  // (N, H, W, C) contiguous
MapView map_ncl(const Tensor& value);   // (N, C, L) of any strides
int32_t narrow(int64_t stride);         // RuntimeError if it is too large

bool is_aligned(const Tensor& value, int64_t bytes);

// A contiguous copy with the last two dimensions exchanged: the kernels read channels side by side.
Tensor transpose_last_two(const Tensor& value);

// A gradient as `count` parts in the sums' dtype. A single part has no dimension of its own.
Tensor allocate_partial_sums(const Tensor& like, int64_t count, Shape sizes, ScalarType acc);
// Their sum in a fixed order.
Tensor reduce_partial_sums(const Tensor& parts, int64_t count, ScalarType type);

}  // namespace mmvmamba
