// The kernel that combines the effects of tiles, and the choice of a kernel by I/O type.
#include <cuda_runtime.h>

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "kernel_launch.h"

namespace mmvmamba {

// Defined in scan_forward_*.cu and scan_backward_*.cu.
template <typename io_t>
cudaError_t launch_forward_io(const ScanForward&, ScanPass pass, cudaStream_t);
template <typename io_t>
cudaError_t launch_backward_io(const ScanBackward&, ScanPass pass, cudaStream_t);

namespace {

constexpr int kColumns = 32, kRows = 16;  // of a block

// Computes the state before each tile from the effects of the tiles; in the backward, the gradient
// that flows into each. A block has 32 of the (state, channel) pairs of a sample and direction. A
// thread has one pair in a sixteenth of the walk.
template <typename T>
__global__ void combine_kernel(const ScanCall args) {
  __shared__ T decays[kRows][kColumns];
  __shared__ T adds[kRows][kColumns];
  const ScanPlan& s = args.plan;
  const int row = s.states * s.channels, blocks = (row + kColumns - 1) / kColumns;
  const int x = static_cast<int>(threadIdx.x % kColumns),
            y = static_cast<int>(threadIdx.x / kColumns);
  const int walk = static_cast<int>(blockIdx.x) / blocks;
  const int column = static_cast<int>(blockIdx.x) % blocks * kColumns + x;
  const bool exists = column < row;
  const int sample = walk % s.batch, which = walk / s.batch;
  const int64_t first =
      (int64_t{sample} * s.directions + args.directions.index[which]) * s.walk_states +
      (exists ? column : 0);
  const bool from_last = is_reversed(args.directions.order[which]) != args.backward;
  const int part = (s.axis_tiles + kRows - 1) / kRows, begin = y * part;
  const int count = exists ? min(part, s.axis_tiles - begin) : 0;  // not positive past the end
  const int64_t step = from_last ? -row : row;
  const int64_t at = first + int64_t{from_last ? s.axis_tiles - 1 - begin : begin} * row;
  T* state = static_cast<T*>(args.state) + at;
  const T* decay = static_cast<const T*>(args.decay) + at;
  T h = 0, d = 1;
#pragma unroll 4
  for (int j = 0; j < count; ++j) {
    const T by = decay[j * step];
    h = by * h + state[j * step];
    d *= by;
  }
  decays[y][x] = d;
  adds[y][x] = h;
  __syncthreads();
  h = 0;
  for (int i = 0; i < y; ++i) h = decays[i][x] * h + adds[i][x];
  if (!exists) return;
#pragma unroll 4
  for (int j = 0; j < count; ++j) {
    const T add = state[j * step], by = decay[j * step];
    state[j * step] = h;
    h = by * h + add;
  }
}

}  // namespace

cudaError_t launch_forward_kernel(const ScanForward& args, ScanPass pass, cudaStream_t stream) {
  switch (args.io) {
    case DeviceIo::kFloat:
      return launch_forward_io<float>(args, pass, stream);
    case DeviceIo::kHalf:
      return launch_forward_io<torch::headeronly::Half>(args, pass, stream);
    case DeviceIo::kBFloat16:
      return launch_forward_io<torch::headeronly::BFloat16>(args, pass, stream);
    case DeviceIo::kDouble:
      return launch_forward_io<double>(args, pass, stream);
  }
  return cudaErrorInvalidValue;
}

cudaError_t launch_backward_kernel(const ScanBackward& args, ScanPass pass, cudaStream_t stream) {
  switch (args.io) {
    case DeviceIo::kFloat:
      return launch_backward_io<float>(args, pass, stream);
    case DeviceIo::kHalf:
      return launch_backward_io<torch::headeronly::Half>(args, pass, stream);
    case DeviceIo::kBFloat16:
      return launch_backward_io<torch::headeronly::BFloat16>(args, pass, stream);
    case DeviceIo::kDouble:
      return launch_backward_io<double>(args, pass, stream);
  }
  return cudaErrorInvalidValue;
}

cudaError_t launch_combine_kernel(const ScanCall& args, cudaStream_t stream) {
  const ScanPlan& s = args.plan;
  const int64_t blocks =
      ceil_div(int64_t{s.channels} * s.states, kColumns) * s.batch * args.directions.count;
  if (blocks > 0x7fffffff) return cudaErrorInvalidConfiguration;
  const auto kernel = args.io == DeviceIo::kDouble ? combine_kernel<double> : combine_kernel<float>;
  kernel<<<static_cast<unsigned>(blocks), kColumns * kRows, 0, stream>>>(args);
  return cudaGetLastError();
}

}  // namespace mmvmamba
