// The forward's launches for one I/O type.
#pragma once

#include "scan_forward.h"
#include "scan_kernel.cuh"

namespace mmvmamba {

template <typename io_t, int kGroup>
cudaError_t launch_forward_group(const ScanForward& args, bool summary, cudaStream_t stream) {
  using Summary = ForwardScan<io_t, kGroup, true>;
  using Full = ForwardScan<io_t, kGroup, false>;
  return summary ? launch_scan<Summary>(args, true, Summary::Shared::size(args.sizes), stream)
                 : launch_scan<Full>(args, false, Full::Shared::size(args.sizes), stream);
}

template <typename io_t>
cudaError_t launch_forward_io(const ScanForward& args, bool summary, cudaStream_t stream) {
  return args.sizes.states == 1 ? launch_forward_group<io_t, 1>(args, summary, stream)
                                : launch_forward_group<io_t, kForwardGroup>(args, summary, stream);
}

#define MMVMAMBA_FORWARD(io_t) \
  template cudaError_t launch_forward_io<io_t>(const ScanForward&, bool, cudaStream_t)

}  // namespace mmvmamba
