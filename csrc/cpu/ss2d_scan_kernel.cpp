// ss2d_scan on a CPU: checks, allocation, the split of the work, and the sums over its parts.
#include <algorithm>

#include "../scan_checks.h"
#include "dispatch_torch.h"
#include "partial_sums.h"

namespace mmvmamba {
namespace {

struct Inputs {
  Tensor x, rows, dt_weight, dt_bias, A, D;
  SS2DSizes sizes;
  Kernels kernels;

  SS2DParams params() const {
    return {dt_weight.const_data_ptr(), dt_bias.const_data_ptr(), A.const_data_ptr(),
            D.const_data_ptr()};
  }
};

// `orders` must outlive the inputs.
Inputs prepare(const Tensor& x, const Tensor& proj, const Tensor& dt_weight, const Tensor& dt_bias,
               const Tensor& A, const Tensor& D, const std::vector<int64_t>& orders) {
  const int64_t K = orders.size(), N = x.size(0), C = x.size(3), R = dt_weight.size(2),
                S = A.size(2);
  const Kernels kernels = best_kernels(x.scalar_type());
  const int64_t blocks = ceil_div(C, kernels.lanes);
  const int64_t groups = groups_of(blocks, N);
  const SS2DSizes sizes{N, x.size(1), x.size(2), C, K, R, S, groups, orders.data()};
  const Tensor dense = as_contiguous(proj);
  const Tensor rows = empty_on(x, proj.sizes(), acc_type(x.scalar_type()));
  const void* from = dense.const_data_ptr();
  void* to = rows.mutable_data_ptr();
  torch::stable::parallel_for(0, N * K, 1, [&](int64_t begin, int64_t end) {
    kernels.ss2d.pack(sizes, from, to, begin, end);
  });
  return {as_contiguous(x),
          rows,
          as_contiguous(dt_weight),
          as_contiguous(dt_bias),
          as_contiguous(A),
          as_contiguous(D),
          sizes,
          kernels};
}

int64_t chunk_count(const SS2DSizes& s) { return ceil_div(s.height * s.width, kChunk); }

// (batch, directions, chunks, states, channels) in one dimension: torch.compile would compile again
// for maps of one chunk, where that dimension is 1.
int64_t state_count(const SS2DSizes& s) {
  return s.batch * s.directions * chunk_count(s) * s.states * s.channels;
}

std::tuple<Tensor, Tensor> ss2d_scan(const Tensor& x, const Tensor& proj, const Tensor& dt_weight,
                                     const Tensor& dt_bias, const Tensor& A, const Tensor& D,
                                     const std::vector<int64_t>& orders, ScalarType out_dtype,
                                     bool save_states) {
  check_ss2d_scan(x, proj, dt_weight, dt_bias, A, D, orders, DeviceType::CPU);
  check_ss2d_scan_out_dtype(x, out_dtype);
  const Inputs in = prepare(x, proj, dt_weight, dt_bias, A, D, orders);
  const SS2DSizes& s = in.sizes;
  const auto acc = acc_type(x.scalar_type());
  const Tensor states = empty_on(x, {save_states ? state_count(s) : 0}, acc);
  const Tensor y = empty_on(x, x.sizes(), out_dtype);
  if (x.numel() == 0) return {y, states};

  const SS2DForward args{s,
                         in.x.const_data_ptr(),
                         in.rows.const_data_ptr(),
                         in.params(),
                         y.mutable_data_ptr(),
                         out_dtype == acc,
                         save_states ? states.mutable_data_ptr() : nullptr};
  torch::stable::parallel_for(0, s.batch * s.groups, 1, [&](int64_t begin, int64_t end) {
    in.kernels.ss2d.forward(args, begin, end);
  });
  return {y, states};
}

using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

Gradients ss2d_scan_backward(const Tensor& grad_y, const Tensor& x, const Tensor& proj,
                             const Tensor& dt_weight, const Tensor& dt_bias, const Tensor& A,
                             const Tensor& D, const Tensor& states,
                             const std::vector<int64_t>& orders) {
  check_ss2d_scan(x, proj, dt_weight, dt_bias, A, D, orders, DeviceType::CPU);
  check_ss2d_scan_grad_y(x, grad_y);
  if (x.numel() == 0) {
    return {zeros_as(x),       zeros_as(proj), zeros_as(dt_weight),
            zeros_as(dt_bias), zeros_as(A),    zeros_as(D)};
  }
  const Inputs in = prepare(x, proj, dt_weight, dt_bias, A, D, orders);
  const SS2DSizes& s = in.sizes;
  const auto io = x.scalar_type(), acc = acc_type(io);
  check_argument("states", states, {state_count(s)}, acc, x);
  const Tensor grad = as_contiguous(grad_y), saved = as_contiguous(states);
  const Tensor grad_x = empty_on(x, x.sizes(), io);
  const PartialSums grad_rows(x, s.groups, proj.sizes(), acc);
  // A part for each sample.
  const PartialSums grad_weight(x, s.batch, dt_weight.sizes(), acc);
  const PartialSums grad_bias(x, s.batch, dt_bias.sizes(), acc);
  const PartialSums grad_A(x, s.batch, A.sizes(), acc), grad_D(x, s.batch, D.sizes(), acc);
  const SS2DBackward args{s,
                          in.x.const_data_ptr(),
                          in.rows.const_data_ptr(),
                          in.params(),
                          saved.const_data_ptr(),
                          grad.const_data_ptr(),
                          grad.scalar_type() == acc,
                          grad_x.mutable_data_ptr(),
                          grad_rows.data(),
                          {grad_weight.data(), grad_bias.data(), grad_A.data(), grad_D.data()}};
  torch::stable::parallel_for(0, s.batch * s.groups, 1, [&](int64_t begin, int64_t end) {
    in.kernels.ss2d.backward(args, begin, end);
  });
  const Tensor grad_proj = empty_on(x, proj.sizes(), io), sum = grad_rows.sum();
  torch::stable::parallel_for(0, s.batch * s.directions, 1, [&](int64_t begin, int64_t end) {
    in.kernels.ss2d.unpack(s, sum.const_data_ptr(), grad_proj.mutable_data_ptr(), begin, end);
  });
  return {grad_x, grad_proj, grad_weight.sum(), grad_bias.sum(), grad_A.sum(), grad_D.sum()};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(mmvmamba, CPU, m) {
  m.impl("ss2d_scan", TORCH_BOX(&ss2d_scan));
  m.impl("ss2d_scan_backward", TORCH_BOX(&ss2d_scan_backward));
}

}  // namespace mmvmamba
