// How a call is split into blocks and launches.
#pragma once

#include <vector>

#include "scan_device.h"

namespace mmvmamba {

enum class ScanKind { kForward, kBackward };

// The kernels' name for a dtype. RuntimeError for one that they do not take.
DeviceIo device_io(ScalarType type);

// Fills in lanes, blocks, chunks and segments from the sizes of the problem. Raises RuntimeError if
// the device lacks the shared memory for the smallest block.
void split_scan(ScanSizes& sizes, ScanKind kind, ScalarType io, const ScanDevice& device);

// Launches everything that a call needs, over all directions. `carry` and `segment_dt` are set.
void launch_forward(const ScanDevice& device, ScanForward args, const std::vector<int64_t>& orders);
void launch_backward(const ScanDevice& device, ScanBackward args,
                     const std::vector<int64_t>& orders);

// Working memory: `carry` and `segment_dt` of ScanForward and ScanBackward.
struct ScanScratch {
  Tensor carry, segment_dt;
  ScanScratch(const Tensor& like, const ScanSizes& sizes, ScalarType acc);
};

// Views of tensors.
MapView map_nhwc(const Tensor& value);  // (N, H, W, C) contiguous
MapView map_ncl(const Tensor& value);   // (N, C, L) of any strides

// A contiguous copy with the last two dimensions exchanged: the kernels read channels side by side.
Tensor transpose_last_two(const Tensor& value);

// A gradient as `count` parts in the sums' dtype. A single part has no dimension of its own.
Tensor allocate_partial_sums(const Tensor& like, int64_t count, Shape sizes, ScalarType acc);
// Their sum in a fixed order.
Tensor reduce_partial_sums(const Tensor& parts, int64_t count, ScalarType type);

}  // namespace mmvmamba
