// The kernel that combines segments, and the choice of a kernel by I/O type.
#include <cuda_runtime.h>

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "kernel_launch.h"

namespace mmvmamba {

// Defined in scan_forward_*.cu and scan_backward_*.cu.
template <typename io_t>
cudaError_t launch_forward_io(const ScanForward&, bool summary, cudaStream_t);
template <typename io_t>
cudaError_t launch_backward_io(const ScanBackward&, bool summary, cudaStream_t);

namespace {

// The states before each segment, from what the segments do to a state; for the backward, the
// gradients that flow into each. A thread for each channel of a state, a direction and a sample.
template <typename T>
__global__ void combine_kernel(const ScanCall args, int64_t count) {
  const ScanPlan& s = args.plan;
  const int64_t index = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (index >= count) return;
  const int64_t row = int64_t{s.states} * s.channels, walk = index / row;
  const int64_t sample = walk % s.batch;
  const int which = static_cast<int>(walk / s.batch);
  const int64_t first =
      (sample * s.directions + args.directions.index[which]) * s.segments * row + index % row;
  T* state = static_cast<T*>(args.state) + first;
  const T* decay = static_cast<const T*>(args.decay) + first;
  const bool from_last = is_reversed(args.directions.order[which]) != args.backward;
  T h = 0;
  for (int j = 0; j < s.segments; ++j) {
    const int64_t at = (from_last ? s.segments - 1 - j : j) * row;
    const T add = state[at];
    state[at] = h;
    h = decay[at] * h + add;
  }
}

}  // namespace

cudaError_t launch_forward_kernel(const ScanForward& args, bool summary, cudaStream_t stream) {
  switch (args.io) {
    case DeviceIo::kFloat:
      return launch_forward_io<float>(args, summary, stream);
    case DeviceIo::kHalf:
      return launch_forward_io<torch::headeronly::Half>(args, summary, stream);
    case DeviceIo::kBFloat16:
      return launch_forward_io<torch::headeronly::BFloat16>(args, summary, stream);
    case DeviceIo::kDouble:
      return launch_forward_io<double>(args, summary, stream);
  }
  return cudaErrorInvalidValue;
}

cudaError_t launch_backward_kernel(const ScanBackward& args, bool summary, cudaStream_t stream) {
  switch (args.io) {
    case DeviceIo::kFloat:
      return launch_backward_io<float>(args, summary, stream);
    case DeviceIo::kHalf:
      return launch_backward_io<torch::headeronly::Half>(args, summary, stream);
    case DeviceIo::kBFloat16:
      return launch_backward_io<torch::headeronly::BFloat16>(args, summary, stream);
    case DeviceIo::kDouble:
      return launch_backward_io<double>(args, summary, stream);
  }
  return cudaErrorInvalidValue;
}

cudaError_t launch_combine_kernel(const ScanCall& args, cudaStream_t stream) {
  constexpr int64_t kThreads = 128;
  const ScanPlan& s = args.plan;
  const int64_t count = int64_t{s.channels} * s.states * s.batch * args.directions.count;
  const unsigned blocks = static_cast<unsigned>(ceil_div(count, kThreads));
  const auto kernel = args.io == DeviceIo::kDouble ? combine_kernel<double> : combine_kernel<float>;
  kernel<<<blocks, kThreads, 0, stream>>>(args, count);
  return cudaGetLastError();
}

}  // namespace mmvmamba
