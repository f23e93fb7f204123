// The ops between the matrix products of a block on a CPU: checks, allocation, the split of the
// work.
#include <algorithm>

#include "../scan_checks.h"
#include "dispatch_torch.h"

namespace mmvmamba {
namespace {

// Elements per task: below this, starting a thread costs more than it saves.
constexpr int64_t kGrain = 16384;

void check_io(const Tensor& x) {
  const ScalarType type = x.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::BFloat16,
                  "x must be float32 or bfloat16, but is ", torch::headeronly::toString(type));
}

// A vector of parameters in float32.
Tensor parameters(const char* name, const Tensor& value, int64_t channels, const Tensor& x) {
  check_argument(name, value, {channels}, value.scalar_type(), x);
  return as_type(as_contiguous(value), ScalarType::Float);
}

int64_t rows_of(const Tensor& x) { return x.numel() / std::max<int64_t>(1, x.size(x.dim() - 1)); }

// Calls f(begin, end) for the rows of `channels` elements.
template <typename F>
void for_rows(int64_t rows, int64_t channels, F f) {
  const int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(1, channels));
  torch::stable::parallel_for(0, rows, grain, f);
}

// The norm of x, or of x + y, with x + y + shift in `sum`.
Tensor norm_rows(const OptionalTensor& sum, const Tensor& x, const OptionalTensor& y,
                 const OptionalTensor& shift, const Tensor& weight, const Tensor& bias,
                 double eps) {
  check_io(x);
  STD_TORCH_CHECK(x.dim() > 0, "x must have at least one dimension");
  const int64_t C = x.size(x.dim() - 1);
  const Tensor scale = parameters("weight", weight, C, x), offset = parameters("bias", bias, C, x);
  const Tensor dense = as_contiguous(x), norm = empty_on(x, x.sizes(), x.scalar_type());
  NormRows args{};
  args.channels = C;
  args.x = dense.const_data_ptr();
  args.weight = static_cast<const float*>(scale.const_data_ptr());
  args.bias = static_cast<const float*>(offset.const_data_ptr());
  args.eps = static_cast<float>(eps);
  args.out = norm.mutable_data_ptr();
  OptionalTensor second, moved;
  if (y.has_value()) {
    check_argument("y", *y, x.sizes(), x.scalar_type(), x);
    check_argument("sum", *sum, x.sizes(), x.scalar_type(), x);
    STD_TORCH_CHECK(sum->is_contiguous(), "sum must be contiguous");
    second = as_contiguous(*y);
    moved = parameters("shift", *shift, C, x);
    args.y = second->const_data_ptr();
    args.shift = static_cast<const float*>(moved->const_data_ptr());
    args.sum = sum->mutable_data_ptr();
  }
  if (x.numel() == 0) return norm;
  const Kernels kernels = best_kernels(x.scalar_type());
  for_rows(rows_of(x), C,
           [&](int64_t begin, int64_t end) { kernels.fused.layer_norm(args, begin, end); });
  return norm;
}

Tensor layer_norm(const Tensor& x, const Tensor& weight, const Tensor& bias, double eps) {
  return norm_rows({}, x, {}, {}, weight, bias, eps);
}

Tensor add_layer_norm(const Tensor& sum, const Tensor& x, const Tensor& y, const Tensor& shift,
                      const Tensor& weight, const Tensor& bias, double eps) {
  return norm_rows(sum, x, y, shift, weight, bias, eps);
}

void bias_gelu_(const Tensor& x, const Tensor& bias) {
  check_io(x);
  STD_TORCH_CHECK(x.dim() > 0 && x.is_contiguous(), "x must be contiguous");
  const int64_t C = x.size(x.dim() - 1);
  const Tensor shift = parameters("bias", bias, C, x);
  const BiasRows args{C, static_cast<const float*>(shift.const_data_ptr()), x.mutable_data_ptr()};
  const Kernels kernels = best_kernels(x.scalar_type());
  for_rows(rows_of(x), C,
           [&](int64_t begin, int64_t end) { kernels.fused.bias_gelu(args, begin, end); });
}

Tensor depthwise_silu(const Tensor& x, const Tensor& weight, const OptionalTensor& bias) {
  check_io(x);
  STD_TORCH_CHECK(x.dim() == 4, "x must have 4 dimensions (N, H, W, C), but got ", shape_text(x));
  const int64_t C = x.size(3);
  check_argument("weight", weight, {C, 1, 3, 3}, weight.scalar_type(), x);
  const Kernels kernels = best_kernels(x.scalar_type());
  const int64_t lanes = kernels.lanes, padded = ceil_div(C, lanes) * lanes;
  // (C, 9) -> (9, C), padded: a tap of a vector of channels is one load.
  const Tensor source = as_type(as_contiguous(weight), ScalarType::Float);
  const Tensor taps = zeros_on(x, {10, padded}, ScalarType::Float);
  const float* from = static_cast<const float*>(source.const_data_ptr());
  float* to = static_cast<float*>(taps.mutable_data_ptr());
  for (int64_t c = 0; c < C; ++c) {
    for (int64_t tap = 0; tap < 9; ++tap) to[tap * padded + c] = from[c * 9 + tap];
  }
  if (bias.has_value()) {
    const Tensor shift = parameters("bias", *bias, C, x);
    std::copy_n(static_cast<const float*>(shift.const_data_ptr()), C, to + 9 * padded);
  }
  const Tensor dense = as_contiguous(x), y = empty_on(x, x.sizes(), x.scalar_type());
  if (x.numel() == 0) return y;
  const DepthwiseMaps args{x.size(1),       x.size(2),           C, dense.const_data_ptr(), to,
                           to + 9 * padded, y.mutable_data_ptr()};
  for_rows(x.size(0) * x.size(1), x.size(2) * C,
           [&](int64_t begin, int64_t end) { kernels.fused.depthwise_silu(args, begin, end); });
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(mmvmamba, CPU, m) {
  m.impl("layer_norm", TORCH_BOX(&layer_norm));
  m.impl("add_layer_norm", TORCH_BOX(&add_layer_norm));
  m.impl("bias_gelu_", TORCH_BOX(&bias_gelu_));
  m.impl("depthwise_silu", TORCH_BOX(&depthwise_silu));
}

}  // namespace mmvmamba
