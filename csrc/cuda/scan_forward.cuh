// The forward's launches for one I/O type.
#pragma once

#include "scan_forward.h"
#include "scan_kernel.cuh"

namespace mmvmamba {

template <typename io_t, int kGroup, int kLanes>
cudaError_t launch_forward_group(const ScanForward& args, bool summary, cudaStream_t stream) {
  using Summary = ForwardScan<io_t, kGroup, true, kLanes>;
  using Full = ForwardScan<io_t, kGroup, false, kLanes>;
  return summary ? launch_scan<Summary>(args, true, Summary::Shared::size(args.sizes), stream)
                 : launch_scan<Full>(args, false, Full::Shared::size(args.sizes), stream);
}

template <typename io_t>
cudaError_t launch_forward_io(const ScanForward& args, bool summary, cudaStream_t stream) {
  if (args.sizes.states > 1) {
    return launch_forward_group<io_t, kForwardGroup, 0>(args, summary, stream);
  }
  return args.sizes.lanes == kMaxLanes
             ? launch_forward_group<io_t, 1, kMaxLanes>(args, summary, stream)
             : launch_forward_group<io_t, 1, kLaneStep>(args, summary, stream);
}

#define MMVMAMBA_FORWARD(io_t) \
  template cudaError_t launch_forward_io<io_t>(const ScanForward&, bool, cudaStream_t)

}  // namespace mmvmamba
