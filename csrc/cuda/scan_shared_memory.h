// The limit on a kernel's dynamic shared memory.
#pragma once

#include <cuda_runtime_api.h>

#include <atomic>
#include <cstdint>

namespace mmvmamba {

// Raises a kernel's limit to the most that a block of the current device may opt in to. Launches
// above 48 KB fail without it. The limit belongs to the function and not to a launch, so it is
// never set to what one launch needs: that would lower it under another thread's larger launch.
// `raised` belongs to the kernel: one bit per device already set. Concurrent first launches write
// the same value.
inline cudaError_t raise_shared_memory_limit(const void* kernel, std::atomic<uint64_t>& raised) {
  int device = 0, bytes = 0;
  cudaError_t status = cudaGetDevice(&device);
  if (status != cudaSuccess) return status;
  const uint64_t bit = device < 64 ? uint64_t{1} << device : 0;
  if (raised.load(std::memory_order_relaxed) & bit) return cudaSuccess;
  status = cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (status != cudaSuccess) return status;
  status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (status == cudaSuccess) raised.fetch_or(bit, std::memory_order_relaxed);
  return status;
}

}  // namespace mmvmamba
