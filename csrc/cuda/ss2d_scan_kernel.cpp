// ss2d_scan on a GPU: checks, allocation, the launches, and the final sums.
#include "../scan_checks.h"
#include "scan_launch.h"

namespace mmvmamba {
namespace {

struct Inputs {
  Tensor x, proj, dt_weight, dt_bias, A, D;
  ScanSizes sizes;
  ScanParams params;
  RowView low, B, C;
};

// The three parts of a row of proj (N, H, W, K, R + 2 S).
void view_rows(const Tensor& proj, const ScanSizes& s, RowView& low, RowView& B, RowView& C) {
  const int64_t inner = s.rank + 2 * s.states, position = s.directions * inner;
  low = {proj.data_ptr(),
         s.length * position,
         0,
         static_cast<int32_t>(position),
         static_cast<int32_t>(inner),
         1};
  B = C = low;
  const int64_t bytes = static_cast<int64_t>(proj.element_size());
  B.data = static_cast<char*>(low.data) + s.rank * bytes;
  C.data = static_cast<char*>(low.data) + (s.rank + s.states) * bytes;
}

Inputs prepare(const Tensor& x, const Tensor& proj, const Tensor& dt_weight, const Tensor& dt_bias,
               const Tensor& A, const Tensor& D, const std::vector<int64_t>& orders) {
  Inputs in{as_contiguous(x),       as_contiguous(proj), as_contiguous(dt_weight),
            as_contiguous(dt_bias), as_contiguous(A),    as_contiguous(D)};
  ScanSizes& s = in.sizes;
  s.batch = x.size(0);
  s.height = x.size(1);
  s.width = x.size(2);
  s.length = s.height * s.width;
  s.channels = s.group_channels = x.size(3);
  s.states = A.size(2);
  s.rank = dt_weight.size(2);
  s.directions = static_cast<int64_t>(orders.size());
  s.softplus = true;
  in.params = {in.dt_weight.const_data_ptr(),
               in.dt_bias.const_data_ptr(),
               in.A.const_data_ptr(),
               in.D.const_data_ptr(),
               nullptr,
               nullptr};
  view_rows(in.proj, s, in.low, in.B, in.C);
  return in;
}

// What both ways take from the inputs; `grad_y` is null forward.
void set_call(ScanCall& args, const Inputs& in, const ScanDevice& device, const Tensor* grad_y) {
  const Tensor &x = in.x, &proj = in.proj;
  const bool backward = grad_y != nullptr;
  const Tensor& other = backward ? *grad_y : x;  // the outputs are our own
  const auto aligned = [](const Tensor& v, int64_t n) {
    return v.size(3) % n == 0 && is_aligned(v, std::min<int64_t>(16, n * v.element_size()));
  };
  args.is_map = aligned(x, 2) && aligned(other, 2);
  args.wide = aligned(x, 8) && aligned(other, 8);
  args.io = device_io(x.scalar_type());
  args.plan = plan_scan(in.sizes, args.io, device, args.is_map, backward);
  args.plan.row = in.low.position;
  // Rows of whole pieces all lie at multiples of them.
  const int64_t row_bytes = in.low.direction * proj.element_size();
  args.plan.row_pieces = row_bytes % 16 == 0 && is_aligned(proj, 16);
  args.plan.row_words = row_bytes % 4 == 0 && is_aligned(proj, 4);
  args.params = in.params;
  args.x = map_nhwc(x);
  args.low = in.low;
  args.B = in.B;
  args.C = in.C;
}

// The sum over directions, of its own where `out` is narrower and launches add to it.
Tensor set_output(ScanCall& args, const Tensor& out, ScalarType acc,
                  const std::vector<int64_t>& orders) {
  const bool narrow = out.scalar_type() != acc;
  const bool several = args.plan.split || orders.size() > kMaxDirections;  // launches
  const Tensor sum = narrow && several ? empty_on(out, out.sizes(), acc) : out;
  if (!narrow || several) args.sum = map_nhwc(sum);
  if (narrow) args.out = map_nhwc(out);
  return sum;
}

std::tuple<Tensor, Tensor> ss2d_scan(const Tensor& x, const Tensor& proj, const Tensor& dt_weight,
                                     const Tensor& dt_bias, const Tensor& A, const Tensor& D,
                                     const std::vector<int64_t>& orders, ScalarType out_dtype,
                                     bool save_states) {
  check_ss2d_scan(x, proj, dt_weight, dt_bias, A, D, orders, ScanDevice::type());
  check_ss2d_scan_out_dtype(x, out_dtype);
  device_io(x.scalar_type());
  const auto acc = acc_type(x.scalar_type());
  const ScanDevice device(x);
  const Tensor y = empty_on(x, x.sizes(), out_dtype);
  if (x.numel() == 0) return {y, empty_on(x, {0}, acc)};
  const Inputs in = prepare(x, proj, dt_weight, dt_bias, A, D, orders);
  const Tensor states = empty_on(x, {save_states ? state_count(in.sizes) : 0}, acc);
  ScanForward args = {};
  set_call(args, in, device, nullptr);
  const Tensor sum = set_output(args, y, acc, orders);
  const ScanScratch scratch(x, args, states);
  if (save_states) args.states = states.mutable_data_ptr();
  launch_scan(device, args, orders);
  return {y, states};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> ss2d_scan_backward(
    const Tensor& grad_y, const Tensor& x, const Tensor& proj, const Tensor& dt_weight,
    const Tensor& dt_bias, const Tensor& A, const Tensor& D, const Tensor& states,
    const std::vector<int64_t>& orders) {
  check_ss2d_scan(x, proj, dt_weight, dt_bias, A, D, orders, ScanDevice::type());
  check_ss2d_scan_grad_y(x, grad_y);
  if (x.numel() == 0) {
    return {zeros_as(x),       zeros_as(proj), zeros_as(dt_weight),
            zeros_as(dt_bias), zeros_as(A),    zeros_as(D)};
  }
  const ScanDevice device(x);
  const Inputs in = prepare(x, proj, dt_weight, dt_bias, A, D, orders);
  const ScanSizes& s = in.sizes;
  const auto io = x.scalar_type(), acc = acc_type(io);
  check_argument("states", states, {state_count(s)}, acc, x);
  const Tensor grad = as_contiguous(grad_y), saved = as_contiguous(states);
  const Tensor grad_x = empty_on(x, x.sizes(), io);
  ScanBackward args = {};
  set_call(args, in, device, &grad);
  const Tensor sum = set_output(args, grad_x, acc, orders);
  const ScanScratch scratch(x, args, empty_on(x, {0}, acc));
  const Tensor proj_parts = allocate_partial_sums(x, args.plan.group_parts, proj.sizes(), acc);
  const ParamRows row(args.plan, false, false);
  const int64_t param_parts = s.batch * args.plan.segments;
  const Tensor params =
      allocate_partial_sums(x, param_parts, {s.directions, row.count, s.channels}, acc);
  args.grad_y = map_nhwc(grad);
  args.grad_y_is_acc = grad.scalar_type() == acc;
  args.states = saved.data_ptr();
  view_rows(proj_parts, s, args.grad_low, args.grad_B, args.grad_C);
  args.low_part = args.row_part = in.proj.numel();
  args.grad_params = params.mutable_data_ptr();
  launch_scan(device, args, orders);

  // (K, C, rows)
  Tensor grads = torch::stable::transpose(reduce_partial_sums(params, param_parts, acc), 1, 2);
  const auto rows = [&](int64_t first, int64_t count) {
    return contiguous_copy(torch::stable::narrow(grads, 2, first, count));
  };
  const auto one = [&](int64_t index) {
    return contiguous_copy(torch::stable::select(grads, 2, index));
  };
  const Tensor grad_D = one(row.D);
  const Tensor of_first = torch::stable::select(grad_D, 0, first_direction(orders));
  Tensor all_D = empty_on(D, D.sizes(), acc);
  for (int64_t k = 0; k < s.directions; ++k) {
    Tensor of_k = torch::stable::select(all_D, 0, k);
    torch::stable::copy_(of_k, of_first);
  }
  return {grad_x,
          reduce_partial_sums(proj_parts, args.plan.group_parts, io),
          rows(0, s.rank),
          one(row.bias),
          rows(row.A, s.states),
          all_D};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(mmvmamba, CUDA, m) {
  m.impl("ss2d_scan", TORCH_BOX(&ss2d_scan));
  m.impl("ss2d_scan_backward", TORCH_BOX(&ss2d_scan_backward));
}

}  // namespace mmvmamba
