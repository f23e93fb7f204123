// The backward's launches for one I/O type.
#pragma once

#include "scan_backward.h"
#include "scan_kernel.cuh"

namespace mmvmamba {

template <typename io_t, int kGroup, int kLanes>
cudaError_t launch_backward_group(const ScanBackward& args, bool summary, cudaStream_t stream) {
  using Summary = BackwardScan<io_t, kGroup, true, kLanes>;
  using Full = BackwardScan<io_t, kGroup, false, kLanes>;
  const bool on_chip = args.keep_weight_on_chip;
  return summary
             ? launch_scan<Summary>(args, true, Summary::Shared::size(args.sizes, on_chip), stream)
             : launch_scan<Full>(args, false, Full::Shared::size(args.sizes, on_chip), stream);
}

template <typename io_t>
cudaError_t launch_backward_io(const ScanBackward& args, bool summary, cudaStream_t stream) {
  if (args.sizes.states > 1) {
    return launch_backward_group<io_t, kBackwardGroup, 0>(args, summary, stream);
  }
  return args.sizes.lanes == kMaxLanes
             ? launch_backward_group<io_t, 1, kMaxLanes>(args, summary, stream)
             : launch_backward_group<io_t, 1, kLaneStep>(args, summary, stream);
}

#define MMVMAMBA_BACKWARD(io_t) \
  template cudaError_t launch_backward_io<io_t>(const ScanBackward&, bool, cudaStream_t)

}  // namespace mmvmamba
