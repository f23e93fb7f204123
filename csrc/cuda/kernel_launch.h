// The launches that scan_combine.cu defines. A status is returned and not thrown:
// nvcc need not see torch.
#pragma once

#include <cuda_runtime_api.h>

#include "scan_args.h"

namespace mmvmamba {

cudaError_t launch_forward_kernel(const ScanForward& args, ScanPass pass, cudaStream_t stream);
cudaError_t launch_backward_kernel(const ScanBackward& args, ScanPass pass, cudaStream_t stream);
cudaError_t launch_combine_kernel(const ScanCall& args, cudaStream_t stream);

}  // namespace mmvmamba
