// One kernel for all scans: a block of the grid runs a block of the scan.
#pragma once

#include <cuda_runtime.h>

#include "scan_args.h"
#include "scan_shared_memory.h"

// Minimum resident threads per multiprocessor (launch bounds): 512 leave 128 registers to each.
// Override only for benchmarks (NVCC_APPEND_FLAGS=-DMMVMAMBA_THREADS_PER_SM=1024).
#ifndef MMVMAMBA_THREADS_PER_SM
#define MMVMAMBA_THREADS_PER_SM 512
#endif

namespace mmvmamba {

// A block of threads that run side by side; see scan_block.h.
template <class Scan>
struct DeviceBlock {
  typename Scan::Thread own;
  __device__ __forceinline__ int threads() const {
    return Scan::kLanes > 0 ? Scan::kLanes * Scan::kWalkers : static_cast<int>(blockDim.x);
  }
  template <class F>
  __device__ __forceinline__ void each(F f) {
    f(static_cast<int>(threadIdx.x), own);
    __syncthreads();
  }
};

template <class Scan>
constexpr int kThreads = (Scan::kLanes > 0 ? Scan::kLanes : kMaxLanes) * Scan::kWalkers;

template <class Scan>
constexpr int kBlocks =
    MMVMAMBA_THREADS_PER_SM > kThreads<Scan> ? MMVMAMBA_THREADS_PER_SM / kThreads<Scan> : 1;

template <class Scan>
__global__ void __launch_bounds__(kThreads<Scan>, kBlocks<Scan>)
    scan_kernel(const typename Scan::Args args) {
  extern __shared__ __align__(16) unsigned char memory[];
  DeviceBlock<Scan> block;
  Scan::run(block, args, static_cast<int64_t>(blockIdx.x), memory);
}

template <class Scan>
cudaError_t launch_scan(const typename Scan::Args& args, bool summary, int64_t shared,
                        cudaStream_t stream) {
  const ScanSizes& s = args.sizes;
  const int64_t blocks = s.batch * s.segments * (s.channels / s.group_channels) * s.group_blocks *
                         (summary ? args.directions.count : 1);
  // More than a grid has would need 2^31 blocks of 64 positions or more: 2^37 elements.
  if (blocks > 0x7fffffff) return cudaErrorInvalidConfiguration;
  static std::atomic<uint64_t> raised{0};
  const cudaError_t status =
      raise_shared_memory_limit(reinterpret_cast<const void*>(scan_kernel<Scan>), raised);
  if (status != cudaSuccess) return status;
  scan_kernel<Scan>
      <<<static_cast<unsigned>(blocks), static_cast<unsigned>(s.lanes * Scan::kWalkers),
         static_cast<size_t>(shared), stream>>>(args);
  return cudaGetLastError();
}

}  // namespace mmvmamba
