// The backward's launches for one I/O type.
#pragma once

#include "scan_backward.h"
#include "scan_kernel.cuh"

namespace mmvmamba {

template <typename io_t, int kGroup>
cudaError_t launch_backward_group(const ScanBackward& args, bool summary, cudaStream_t stream) {
  using Summary = BackwardScan<io_t, kGroup, true>;
  using Full = BackwardScan<io_t, kGroup, false>;
  const bool on_chip = args.keep_weight_on_chip;
  return summary
             ? launch_scan<Summary>(args, true, Summary::Shared::size(args.sizes, on_chip), stream)
             : launch_scan<Full>(args, false, Full::Shared::size(args.sizes, on_chip), stream);
}

template <typename io_t>
cudaError_t launch_backward_io(const ScanBackward& args, bool summary, cudaStream_t stream) {
  return args.sizes.states == 1
             ? launch_backward_group<io_t, 1>(args, summary, stream)
             : launch_backward_group<io_t, kBackwardGroup>(args, summary, stream);
}

#define MMVMAMBA_BACKWARD(io_t) \
  template cudaError_t launch_backward_io<io_t>(const ScanBackward&, bool, cudaStream_t)

}  // namespace mmvmamba
