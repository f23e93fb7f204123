// The torch face of selective_scan for a ScanDevice: a 1-D sequence is a map of one row.
//
// The gate z is applied here and not in the kernels: it is one product for each element, for which
// the backward needs the output before it, and few models have one.
#include "scan_face.h"

namespace mmvmamba {
namespace {

const int64_t kRowOrder[] = {kRow};

struct Inputs {
  at::Tensor A, B, C;
  OptionalTensor D, delta_bias;
  ScanSizes sizes;
  ScanParams params;
  RowView rows_B, rows_C;
  at::TensorOptions acc;
};

// (batch, groups, states, length) as rows; nothing where constant.
RowView view_rows(const at::Tensor& v) {
  if (v.dim() == 2) return {};
  return {v.data_ptr(), v.stride(0), v.stride(1), v.stride(3), 0, v.stride(2)};
}

const void* pointer(const OptionalTensor& value) {
  return value.has_value() ? value->const_data_ptr() : nullptr;
}

Inputs prepare(const ScanDevice& device, ScanKind kind, const at::Tensor& u, const at::Tensor& A,
               const at::Tensor& B, const at::Tensor& C, const OptionalTensor& D,
               const OptionalTensor& delta_bias, bool softplus) {
  const auto channels_adjoin = [](const at::Tensor& v) { return v.t().contiguous(); };  // (N, D)
  const auto dense = [](const OptionalTensor& v) {
    return v.has_value() ? OptionalTensor(v->contiguous()) : v;
  };
  Inputs in;
  in.A = channels_adjoin(A);
  in.B = B.dim() == 2 ? channels_adjoin(B) : B;
  in.C = C.dim() == 2 ? channels_adjoin(C) : C;
  in.D = dense(D);
  in.delta_bias = dense(delta_bias);
  in.acc = in.A.options();
  ScanSizes& s = in.sizes;
  s = {};
  s.batch = u.size(0);
  s.height = 1;
  s.width = s.length = u.size(2);
  s.channels = u.size(1);
  s.group_channels = s.channels / (B.dim() == 4 ? B.size(1) : C.dim() == 4 ? C.size(1) : 1);
  s.states = A.size(1);
  s.directions = 1;
  s.softplus = softplus;
  split_scan(s, kind, u.scalar_type(), device);
  in.rows_B = view_rows(in.B);
  in.rows_C = view_rows(in.C);
  in.params = {nullptr,
               pointer(in.delta_bias),
               in.A.const_data_ptr(),
               pointer(in.D),
               B.dim() == 2 ? in.B.const_data_ptr() : nullptr,
               C.dim() == 2 ? in.C.const_data_ptr() : nullptr};
  return in;
}

int64_t state_count(const ScanSizes& s) { return s.batch * s.chunks * s.states * s.channels; }

struct Outputs {
  at::Tensor y, last_state, states;
};

// The scan without a gate, its output in `dtype`.
Outputs scan(const ScanDevice& device, const at::Tensor& u, const at::Tensor& delta,
             const Inputs& in, at::ScalarType dtype, bool save_states) {
  const ScanSizes& s = in.sizes;
  const bool narrow = dtype != acc_type(u.scalar_type());
  Outputs out;
  out.y = at::empty(u.sizes(), in.acc.dtype(dtype));
  out.last_state = at::empty({s.batch, s.channels, s.states}, in.acc);
  out.states = at::empty({save_states ? state_count(s) : 0}, in.acc);
  const ScanScratch scratch(s, in.acc);
  ScanForward args = {};
  args.sizes = s;
  args.io = device_io(u.scalar_type());
  args.params = in.params;
  args.x = map_ncl(u);
  args.delta = map_ncl(delta);
  args.B = in.rows_B;
  args.C = in.rows_C;
  (narrow ? args.y : args.sum) = map_ncl(out.y);
  args.carry = scratch.carry.mutable_data_ptr();
  args.segment_dt = scratch.segment_dt.mutable_data_ptr();
  args.last_state = out.last_state.mutable_data_ptr();
  if (save_states) args.states = out.states.mutable_data_ptr();
  launch_forward(device, args, kRowOrder);
  return out;
}

}  // namespace

std::tuple<at::Tensor, at::Tensor, at::Tensor> selective_scan_on(
    const ScanDevice& device, const at::Tensor& u, const at::Tensor& delta, const at::Tensor& A,
    const at::Tensor& B, const at::Tensor& C, const OptionalTensor& D, const OptionalTensor& z,
    const OptionalTensor& delta_bias, bool delta_softplus, bool save_states) {
  check_selective_scan(u, delta, A, B, C, D, z, delta_bias, device.type());
  const auto io = u.scalar_type(), acc = acc_type(io);
  device_io(io);
  if (u.numel() == 0) {
    return {at::empty(u.sizes(), A.options().dtype(io)),
            at::zeros({u.size(0), u.size(1), A.size(1)}, A.options()), at::empty({0}, A.options())};
  }
  const Inputs in = prepare(device, ScanKind::kForward, u, A, B, C, D, delta_bias, delta_softplus);
  Outputs out = scan(device, u, delta, in, z.has_value() ? acc : io, save_states);
  if (z.has_value()) out.y = (out.y * at::silu(z->to(acc))).to(io);
  return {out.y.contiguous(), out.last_state, out.states};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor,
           at::Tensor>
selective_scan_backward_on(const ScanDevice& device, const at::Tensor& grad_out,
                           const at::Tensor& u, const at::Tensor& delta, const at::Tensor& A,
                           const at::Tensor& B, const at::Tensor& C, const OptionalTensor& D,
                           const OptionalTensor& z, const OptionalTensor& delta_bias,
                           const at::Tensor& states, bool delta_softplus) {
  check_selective_scan(u, delta, A, B, C, D, z, delta_bias, device.type());
  const auto io = u.scalar_type(), acc = acc_type(io);
  check_param("grad_out", grad_out, u.sizes(), io, u.device());
  const auto none = [&] { return at::empty({0}, u.options()); };
  if (u.numel() == 0) {
    const auto zeros = [&](const OptionalTensor& v) { return v ? at::zeros_like(*v) : none(); };
    return {at::zeros_like(u), at::zeros_like(delta), at::zeros_like(A),
            at::zeros_like(B), at::zeros_like(C),     zeros(D),
            zeros(z),          zeros(delta_bias)};
  }
  at::Tensor grad = grad_out, grad_z = none();
  if (z.has_value()) {
    const Inputs in =
        prepare(device, ScanKind::kForward, u, A, B, C, D, delta_bias, delta_softplus);
    const at::Tensor y = scan(device, u, delta, in, acc, false).y;
    const at::Tensor gate = z->to(acc), wide = grad_out.to(acc);
    grad_z = at::silu_backward(wide * y, gate).to(io).contiguous();
    grad = wide * at::silu(gate);
  }
  const Inputs in = prepare(device, ScanKind::kBackward, u, A, B, C, D, delta_bias, delta_softplus);
  const ScanSizes& s = in.sizes;
  check_param("states", states, {state_count(s)}, acc, u.device());
  const at::Tensor saved = states.contiguous();
  at::Tensor grad_u = at::empty(u.sizes(), in.acc.dtype(io));
  at::Tensor grad_delta = at::empty(u.sizes(), in.acc.dtype(io));
  const bool constant_B = B.dim() == 2, constant_C = C.dim() == 2;
  const auto weight_parts = [&](bool constant) {
    if (constant) return at::empty({0}, in.acc);
    return at::empty({s.group_blocks, s.batch, s.channels / s.group_channels, s.states, s.length},
                     in.acc);
  };
  const at::Tensor parts_B = weight_parts(constant_B), parts_C = weight_parts(constant_C);
  const ParamRows row(s, constant_B, constant_C);
  const at::Tensor param_parts = at::empty({s.batch * s.segments, row.count, s.channels}, in.acc);
  const ScanScratch scratch(s, in.acc);

  ScanBackward args = {};
  args.sizes = s;
  args.io = device_io(io);
  args.params = in.params;
  args.x = map_ncl(u);
  args.delta = map_ncl(delta);
  args.B = in.rows_B;
  args.C = in.rows_C;
  args.grad_y = map_ncl(grad);
  args.grad_y_is_acc = grad.scalar_type() == acc;
  args.states = saved.const_data_ptr();
  args.carry = scratch.carry.mutable_data_ptr();
  args.segment_dt = scratch.segment_dt.mutable_data_ptr();
  (io == acc ? args.sum : args.grad_x) = map_ncl(grad_u);
  args.grad_delta = map_ncl(grad_delta);
  if (!constant_B) args.grad_B = view_rows(parts_B[0]);
  if (!constant_C) args.grad_C = view_rows(parts_C[0]);
  args.row_part = s.batch * (s.channels / s.group_channels) * s.states * s.length;
  args.grad_params = param_parts.mutable_data_ptr();
  launch_backward(device, args, kRowOrder);

  // Sums in a fixed order, and copies: the outputs of an op must not share memory.
  const at::Tensor grads = param_parts.sum(0).t();  // (D, rows)
  const auto dense = at::MemoryFormat::Contiguous;
  const auto rows = [&](int64_t first) { return grads.narrow(1, first, s.states).clone(dense); };
  const auto one = [&](int64_t index) { return grads.select(1, index).clone(dense); };
  return {grad_u,
          grad_delta,
          rows(row.A),
          constant_B ? rows(row.B) : parts_B.sum(0).to(io),
          constant_C ? rows(row.C) : parts_C.sum(0).to(io),
          D.has_value() ? one(row.D) : none(),
          grad_z,
          delta_bias.has_value() ? one(row.bias) : none()};
}

}  // namespace mmvmamba
