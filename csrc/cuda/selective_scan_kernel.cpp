// selective_scan on a GPU: a 1-D sequence is a map of one row.
//
// The gate z is applied here and not in the kernels: it is one product for each element, for which
// the backward needs the output before it, and few models have one.
#include <array>

#include "../scan_checks.h"
#include "scan_launch.h"

namespace mmvmamba {
namespace {

const std::vector<int64_t> kRowOrder = {kRow};

struct Inputs {
  Tensor A, B, C;
  OptionalTensor D, delta_bias;
  ScanSizes sizes;
  ScanParams params;
  RowView rows_B, rows_C;
};

// (batch, groups, states, length) as rows; nothing where constant.
RowView view_rows(const Tensor& v) {
  if (v.dim() == 2) return {};
  return {v.data_ptr(), v.stride(0), v.stride(1), narrow(v.stride(3)), 0, narrow(v.stride(2))};
}

Inputs prepare(const Tensor& u, const Tensor& A, const Tensor& B, const Tensor& C,
               const OptionalTensor& D, const OptionalTensor& delta_bias, bool softplus) {
  Inputs in{as_contiguous(A), B.dim() == 2 ? as_contiguous(B) : B,
            C.dim() == 2 ? as_contiguous(C) : C, as_contiguous(D), as_contiguous(delta_bias)};
  ScanSizes& s = in.sizes;
  s.batch = u.size(0);
  s.height = 1;
  s.width = s.length = u.size(2);
  s.channels = u.size(1);
  s.group_channels = s.channels / (B.dim() == 4 ? B.size(1) : C.dim() == 4 ? C.size(1) : 1);
  s.states = A.size(1);
  s.directions = 1;
  s.softplus = softplus;
  s.constant_B = B.dim() == 2;
  s.constant_C = C.dim() == 2;
  in.rows_B = view_rows(in.B);
  in.rows_C = view_rows(in.C);
  in.params = {nullptr,
               data_or_null(in.delta_bias),
               in.A.const_data_ptr(),
               data_or_null(in.D),
               B.dim() == 2 ? in.B.const_data_ptr() : nullptr,
               C.dim() == 2 ? in.C.const_data_ptr() : nullptr};
  return in;
}

// What both ways take from the inputs.
void set_call(ScanCall& args, const Tensor& u, const Tensor& delta, const Inputs& in,
              const ScanDevice& device, bool backward) {
  args.io = device_io(u.scalar_type());
  args.plan = plan_scan(in.sizes, args.io, device, false, backward);
  args.params = in.params;
  args.x = map_ncl(u);
  args.delta = map_ncl(delta);
  args.B = in.rows_B;
  args.C = in.rows_C;
}

// An elementwise op of tensors by its name.
template <class... Tensors>
Tensor call_aten_op(const char* name, const char* overload, const Tensors&... inputs) {
  std::array<StableIValue, sizeof...(inputs)> stack{torch::stable::detail::from(inputs)...};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(name, overload, stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}
Tensor silu(const Tensor& value) { return call_aten_op("aten::silu", "", value); }
Tensor silu_backward(const Tensor& grad, const Tensor& value) {
  return call_aten_op("aten::silu_backward", "", grad, value);
}
Tensor multiply(const Tensor& a, const Tensor& b) {
  return call_aten_op("aten::mul", "Tensor", a, b);
}

struct Outputs {
  Tensor y, last_state, states;
};

// The scan without a gate, its output in `dtype`.
Outputs scan(const ScanDevice& device, const Tensor& u, const Tensor& delta, const Inputs& in,
             ScalarType dtype, bool save_states) {
  const ScanSizes& s = in.sizes;
  const auto acc = acc_type(u.scalar_type());
  const Outputs out{empty_on(u, u.sizes(), dtype),
                    empty_on(u, {s.batch, s.channels, s.states}, acc),
                    empty_on(u, {save_states ? state_count(s) : 0}, acc)};
  ScanForward args = {};
  set_call(args, u, delta, in, device, false);
  const ScanScratch scratch(u, args, out.states);
  (dtype == acc ? args.sum : args.out) = map_ncl(out.y);
  args.last_state = out.last_state.mutable_data_ptr();
  if (save_states) args.states = out.states.mutable_data_ptr();
  launch_scan(device, args, kRowOrder);
  return out;
}

std::tuple<Tensor, Tensor, Tensor> selective_scan(const Tensor& u, const Tensor& delta,
                                                  const Tensor& A, const Tensor& B, const Tensor& C,
                                                  const OptionalTensor& D, const OptionalTensor& z,
                                                  const OptionalTensor& delta_bias,
                                                  bool delta_softplus, bool save_states) {
  check_selective_scan(u, delta, A, B, C, D, z, delta_bias, ScanDevice::type());
  const auto io = u.scalar_type(), acc = acc_type(io);
  device_io(io);
  if (u.numel() == 0) {
    return {empty_on(u, u.sizes(), io), zeros_on(u, {u.size(0), u.size(1), A.size(1)}, acc),
            empty_on(u, {0}, acc)};
  }
  const ScanDevice device(u);
  const Inputs in = prepare(u, A, B, C, D, delta_bias, delta_softplus);
  Outputs out = scan(device, u, delta, in, z.has_value() ? acc : io, save_states);
  if (z.has_value()) {
    const Tensor gate = silu(as_type(*z, acc));
    out.y = as_contiguous(as_type(multiply(out.y, gate), io));
  }
  return {out.y, out.last_state, out.states};
}

using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

Gradients selective_scan_backward(const Tensor& grad_out, const Tensor& u, const Tensor& delta,
                                  const Tensor& A, const Tensor& B, const Tensor& C,
                                  const OptionalTensor& D, const OptionalTensor& z,
                                  const OptionalTensor& delta_bias, const Tensor& states,
                                  bool delta_softplus) {
  check_selective_scan(u, delta, A, B, C, D, z, delta_bias, ScanDevice::type());
  const auto io = u.scalar_type(), acc = acc_type(io);
  check_argument("grad_out", grad_out, u.sizes(), io, u);
  const auto none = [&] { return empty_on(u, {0}, io); };
  if (u.numel() == 0) {
    const auto zeros = [&](const OptionalTensor& v) { return v ? zeros_as(*v) : none(); };
    return {zeros_as(u), zeros_as(delta), zeros_as(A), zeros_as(B),
            zeros_as(C), zeros(D),        zeros(z),    zeros(delta_bias)};
  }
  const ScanDevice device(u);
  Tensor grad = grad_out, grad_z = none();
  if (z.has_value()) {
    const Inputs in = prepare(u, A, B, C, D, delta_bias, delta_softplus);
    const Tensor y = scan(device, u, delta, in, acc, false).y;
    const Tensor gate = as_type(*z, acc), wide = as_type(grad_out, acc);
    grad_z = as_contiguous(as_type(silu_backward(multiply(wide, y), gate), io));
    grad = multiply(wide, silu(gate));
  }
  const Inputs in = prepare(u, A, B, C, D, delta_bias, delta_softplus);
  const ScanSizes& s = in.sizes;
  check_argument("states", states, {state_count(s)}, acc, u);
  const Tensor saved = as_contiguous(states);
  ScanBackward args = {};
  set_call(args, u, delta, in, device, true);
  const ScanScratch scratch(u, args, none());
  const int64_t parts = args.plan.group_parts;
  const auto weight_parts = [&](const Tensor& weights) {
    if (weights.dim() == 2) return empty_on(u, {0}, acc);
    return allocate_partial_sums(u, parts, weights.sizes(), acc);
  };
  const Tensor parts_B = weight_parts(B), parts_C = weight_parts(C);
  const ParamRows row(args.plan, s.constant_B, s.constant_C);
  const int64_t param_parts = s.batch * args.plan.segments;
  const Tensor params = allocate_partial_sums(u, param_parts, {row.count, s.channels}, acc);
  const Tensor grad_u = empty_on(u, u.sizes(), io);
  // Groups of states add to it.
  const Tensor grad_delta = empty_on(u, u.sizes(), s.states > kStateGroup ? acc : io);

  // One part of a gradient of B or C, contiguous.
  const int64_t groups = s.channels / s.group_channels, rows_of_group = s.states * s.length;
  const auto part_rows = [&](const Tensor& of) {
    return RowView{of.data_ptr(), groups * rows_of_group, rows_of_group, 1, 0, narrow(s.length)};
  };
  args.grad_y = map_ncl(grad);
  args.grad_y_is_acc = grad.scalar_type() == acc;
  args.states = saved.data_ptr();
  (io == acc ? args.sum : args.out) = map_ncl(grad_u);
  args.grad_delta = map_ncl(grad_delta);
  if (!s.constant_B) args.grad_B = part_rows(parts_B);
  if (!s.constant_C) args.grad_C = part_rows(parts_C);
  args.row_part = s.batch * groups * rows_of_group;
  args.grad_params = params.mutable_data_ptr();
  launch_scan(device, args, kRowOrder);

  // (D, rows)
  Tensor grads = torch::stable::transpose(reduce_partial_sums(params, param_parts, acc), 0, 1);
  const auto rows = [&](int64_t first) {
    return contiguous_copy(torch::stable::narrow(grads, 1, first, s.states));
  };
  const auto one = [&](int64_t index) {
    return contiguous_copy(torch::stable::select(grads, 1, index));
  };
  return {grad_u,
          as_type(grad_delta, io),
          rows(row.A),
          s.constant_B ? rows(row.B) : reduce_partial_sums(parts_B, parts, io),
          s.constant_C ? rows(row.C) : reduce_partial_sums(parts_C, parts, io),
          D.has_value() ? one(row.D) : none(),
          grad_z,
          delta_bias.has_value() ? one(row.bias) : none()};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(mmvmamba, CUDA, m) {
  m.impl("selective_scan", TORCH_BOX(&selective_scan));
  m.impl("selective_scan_backward", TORCH_BOX(&selective_scan_backward));
}

}  // namespace mmvmamba
