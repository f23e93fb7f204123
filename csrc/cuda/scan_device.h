// The device that runs the scan kernels.
#pragma once

#include <torch/csrc/stable/accelerator.h>

#include <optional>

#include "../scan_tensors.h"
#include "scan_args.h"

namespace mmvmamba {

// A tensor's device, which is the current device for as long as this lives. Kernels are launched on
// its current stream.
class ScanDevice {
 public:
  explicit ScanDevice(const Tensor& value);

  static DeviceType type();

  // Threads that fill a large device. A constant and not a property of the current device, so that
  // devices with the same shared memory split alike: the split determines the order of summation.
  int64_t target_threads() const;

  // A walk of at most this many tiles is never split just to fill the device. In half precision
  // with one state, a block of the forward scans them in four rounds, in less time than four
  // launches take.
  int64_t least_split() const;

  // Bytes of shared memory that a block may have.
  int64_t max_shared() const;

  void run(const ScanForward& args, ScanPass pass) const;
  void run(const ScanBackward& args, ScanPass pass) const;
  void combine(const ScanCall& args) const;

 private:
  int32_t index_ = 0;
  void* stream_ = nullptr;
  std::optional<torch::stable::accelerator::DeviceGuard> guard_;
};

}  // namespace mmvmamba
