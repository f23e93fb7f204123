// How a call is split into blocks and launches, for a GPU and for the host harness of the tests.
#pragma once

#include <ATen/ATen.h>

#include <vector>

#include "scan_args.h"

namespace mmvmamba {

// What runs the blocks.
class ScanDevice {
 public:
  virtual ~ScanDevice() = default;
  // Blocks that fill a large device. A constant and no property of the device at hand: the split
  // decides the order of sums.
  virtual int64_t target_blocks() const { return 512; }
  // Bytes of shared memory that a block may have.
  virtual int64_t max_shared() const = 0;
  virtual at::DeviceType type() const = 0;
  virtual void forward(const ScanForward& args, bool summary) const = 0;
  virtual void backward(const ScanBackward& args, bool summary) const = 0;
  virtual void combine(const ScanCarry& args) const = 0;
};

enum class ScanKind { kForward, kBackward };

// Fills in lanes, blocks, chunks and segments from the sizes of the problem. ValueError where the
// device has not the shared memory for the smallest block.
void split_scan(ScanSizes& sizes, ScanKind kind, at::ScalarType io, const ScanDevice& device);

// Launches everything that a call needs, over all directions. `carry` and `segment_dt` are set.
void launch_forward(const ScanDevice& device, ScanForward args, at::IntArrayRef orders);
void launch_backward(const ScanDevice& device, ScanBackward args, at::IntArrayRef orders);

// Working memory: `carry` and `segment_dt` of ScanForward and ScanBackward.
struct ScanScratch {
  at::Tensor carry, segment_dt;
  ScanScratch(const ScanSizes& sizes, const at::TensorOptions& acc);
};

// Views of tensors.
MapView map_nhwc(const at::Tensor& value);  // (N, H, W, C) contiguous
MapView map_ncl(const at::Tensor& value);   // (N, C, L) of any strides

}  // namespace mmvmamba
