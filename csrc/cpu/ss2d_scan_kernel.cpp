// The CPU face of ss2d_scan: checks, allocation, the split of the work, and the sums over its
// parts.
#include <torch/library.h>

#include <algorithm>
#include <vector>

#include "torch_common.h"

namespace mmvmamba {
namespace {

struct Inputs {
  at::Tensor x, proj, dt_weight, dt_bias, A, D;
  std::vector<int64_t> orders;
  SS2DSizes sizes;
  Kernels kernels;
  int64_t blocks;
};

Inputs check_inputs(const at::Tensor& x, const at::Tensor& proj, const at::Tensor& dt_weight,
                    const at::Tensor& dt_bias, const at::Tensor& A, const at::Tensor& D,
                    at::IntArrayRef orders) {
  check_ss2d_scan(x, proj, dt_weight, dt_bias, A, D, orders, at::kCPU);
  const int64_t K = orders.size(), C = x.size(3), R = dt_weight.size(2), S = A.size(2);
  Inputs in;
  in.x = x.contiguous();
  in.proj = proj.contiguous();
  in.dt_weight = dt_weight.contiguous();
  in.dt_bias = dt_bias.contiguous();
  in.A = A.contiguous();
  in.D = D.contiguous();
  in.orders = orders.vec();
  in.kernels = best_kernels(io_of(x.scalar_type()));
  in.blocks = ceil_div(C, in.kernels.lanes);
  const int64_t N = std::max<int64_t>(1, x.size(0));
  in.sizes = {
      x.size(0),       x.size(1), x.size(2), C, K, R, S, std::min(in.blocks, ceil_div(kItems, N)),
      in.orders.data()};
  return in;
}

SS2DParams params_of(const Inputs& in) {
  return {in.dt_weight.const_data_ptr(), in.dt_bias.const_data_ptr(), in.A.const_data_ptr(),
          in.D.const_data_ptr()};
}

std::tuple<at::Tensor, at::Tensor> ss2d_scan(const at::Tensor& x, const at::Tensor& proj,
                                             const at::Tensor& dt_weight, const at::Tensor& dt_bias,
                                             const at::Tensor& A, const at::Tensor& D,
                                             at::IntArrayRef orders, at::ScalarType out_dtype,
                                             bool save_states) {
  const Inputs in = check_inputs(x, proj, dt_weight, dt_bias, A, D, orders);
  const auto& s = in.sizes;
  const auto acc = acc_type(x.scalar_type());
  check_ss2d_scan_out_dtype(x, out_dtype);
  const int64_t chunks = save_states ? ceil_div(s.height * s.width, kChunk) : 0;
  // (batch, directions, chunks, states, channels) in one dimension: torch.compile would compile
  // again for maps of one chunk, where that dimension is 1.
  at::Tensor states = at::empty({s.batch * s.directions * chunks * s.states * s.channels},
                                in.x.options().dtype(acc));
  at::Tensor y = at::empty(in.x.sizes(), in.x.options().dtype(out_dtype));
  if (x.numel() == 0) return {y, states};

  const SS2DForward args{s,
                         in.x.const_data_ptr(),
                         in.proj.const_data_ptr(),
                         params_of(in),
                         y.mutable_data_ptr(),
                         out_dtype == acc,
                         save_states ? states.mutable_data_ptr() : nullptr};
  at::parallel_for(0, s.batch * s.groups, 1,
                   [&](int64_t begin, int64_t end) { in.kernels.ss2d.forward(args, begin, end); });
  return {y, states};
}

using Gradients =
    std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

Gradients ss2d_scan_backward(const at::Tensor& grad_y, const at::Tensor& x, const at::Tensor& proj,
                             const at::Tensor& dt_weight, const at::Tensor& dt_bias,
                             const at::Tensor& A, const at::Tensor& D, const at::Tensor& states,
                             at::IntArrayRef orders) {
  const Inputs in = check_inputs(x, proj, dt_weight, dt_bias, A, D, orders);
  const auto& s = in.sizes;
  const auto io = x.scalar_type(), acc = acc_type(io);
  check_ss2d_scan_grad_y(x, grad_y);
  if (x.numel() == 0) {
    return {at::zeros_like(x),       at::zeros_like(proj), at::zeros_like(dt_weight),
            at::zeros_like(dt_bias), at::zeros_like(A),    at::zeros_like(D)};
  }
  check_param(
      "states", states,
      {s.batch * s.directions * ceil_div(s.height * s.width, kChunk) * s.states * s.channels}, acc,
      x.device());
  const at::Tensor grad = grad_y.contiguous(), saved = states.contiguous();
  const auto options = in.x.options().dtype(acc);
  at::Tensor grad_x = at::empty(in.x.sizes(), in.x.options());
  const int64_t groups = ceil_div(in.blocks, blocks_per_group(in.blocks, s.groups));
  std::vector<int64_t> shape = in.proj.sizes().vec();
  shape.insert(shape.begin(), groups);
  at::Tensor proj_parts = at::empty(shape, options);
  // Each sample's part of a parameter's gradient.
  const auto parts = [&s, &options](const at::Tensor& param) {
    std::vector<int64_t> sizes = param.sizes().vec();
    sizes.insert(sizes.begin(), s.batch);
    return at::empty(sizes, options);
  };
  at::Tensor weight_parts = parts(dt_weight), bias_parts = parts(dt_bias);
  at::Tensor A_parts = parts(A), D_parts = parts(D);
  const SS2DBackward args{s,
                          in.x.const_data_ptr(),
                          in.proj.const_data_ptr(),
                          params_of(in),
                          saved.const_data_ptr(),
                          grad.const_data_ptr(),
                          grad.scalar_type() == acc,
                          grad_x.mutable_data_ptr(),
                          proj_parts.mutable_data_ptr(),
                          {weight_parts.mutable_data_ptr(), bias_parts.mutable_data_ptr(),
                           A_parts.mutable_data_ptr(), D_parts.mutable_data_ptr()}};
  at::parallel_for(0, s.batch * s.groups, 1,
                   [&](int64_t begin, int64_t end) { in.kernels.ss2d.backward(args, begin, end); });

  return {grad_x,
          sum_first(proj_parts, io),
          sum_first(weight_parts, acc),
          sum_first(bias_parts, acc),
          sum_first(A_parts, acc),
          sum_first(D_parts, acc)};
}

}  // namespace

TORCH_LIBRARY_IMPL(mmvmamba, CPU, m) {
  m.impl("ss2d_scan", ss2d_scan);
  m.impl("ss2d_scan_backward", ss2d_scan_backward);
}

}  // namespace mmvmamba
