// The launches of a scan by I/O type.
#pragma once

#include <cuda_runtime.h>

#include "scan_shared_memory.h"
#include "scan_tile.cuh"

namespace mmvmamba {

template <typename io_t>
__global__ void pack_weight_kernel(const ScanCall args, int64_t count) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (index < count) pack_weight<io_t>(args, index);
}

// Packs dt_weight, before the first launch of a call.
template <typename io_t>
cudaError_t launch_pack_weight(const ScanCall& args, cudaStream_t stream) {
  if constexpr (kPositionRows<io_t>) {
    constexpr int kThreads = 64;
    const int64_t pieces = packed_weight_pieces(args.plan);
    if (args.pack_weights && pieces > 0) {
      pack_weight_kernel<io_t>
          <<<static_cast<unsigned>(pieces), kThreads, 0, stream>>>(args, pieces * kThreads);
    }
  }
  return cudaGetLastError();
}

template <int kMostWarps, class Args>
cudaError_t launch_blocks(void (*kernel)(const Args), std::atomic<uint64_t>& raised,
                          const Args& args, ScanPass pass, cudaStream_t stream) {
  const bool summary = pass == ScanPass::kSummary;
  const ScanPlan& s = args.plan;
  const int64_t blocks = int64_t{s.batch} * s.segments * s.groups * s.group_parts *
                         (summary ? args.directions.count : 1);
  if (blocks > 0x7fffffff || s.warps > kMostWarps) return cudaErrorInvalidConfiguration;
  const cudaError_t status =
      raise_shared_memory_limit(reinterpret_cast<const void*>(kernel), raised);
  if (status != cudaSuccess) return status;
  const int64_t shared = s.shared.sum + int64_t{s.tiles} * s.shared.sum_bytes;
  kernel<<<static_cast<unsigned>(blocks), static_cast<unsigned>(s.warps * 32),
           static_cast<size_t>(shared), stream>>>(args);
  return cudaGetLastError();
}

}  // namespace mmvmamba
