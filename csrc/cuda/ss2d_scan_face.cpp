// The torch face of ss2d_scan for a ScanDevice.
#include "scan_face.h"

namespace mmvmamba {

DeviceIo device_io(at::ScalarType type) {
  switch (type) {
    case at::kFloat:
      return DeviceIo::kFloat;
    case at::kHalf:
      return DeviceIo::kHalf;
    case at::kBFloat16:
      return DeviceIo::kBFloat16;
    case at::kDouble:
      return DeviceIo::kDouble;
    default:
      TORCH_CHECK_TYPE(false, "the CUDA kernels take float32, float16, bfloat16 or float64, not ",
                       type);
  }
}

namespace {

struct Inputs {
  at::Tensor x, proj, dt_weight, dt_bias, A, D;
  ScanSizes sizes;
  ScanParams params;
  RowView low, B, C;
  at::TensorOptions acc;
};

// The three parts of a row of proj (N, H, W, K, R + 2 S).
void view_rows(const at::Tensor& proj, const ScanSizes& s, RowView& low, RowView& B, RowView& C) {
  const int64_t inner = s.rank + 2 * s.states, position = s.directions * inner;
  low = {proj.data_ptr(), s.length * position, 0, position, inner, 1};
  B = C = low;
  const int64_t bytes = proj.element_size();
  B.data = static_cast<char*>(low.data) + s.rank * bytes;
  C.data = static_cast<char*>(low.data) + (s.rank + s.states) * bytes;
}

Inputs prepare(const ScanDevice& device, ScanKind kind, const at::Tensor& x, const at::Tensor& proj,
               const at::Tensor& dt_weight, const at::Tensor& dt_bias, const at::Tensor& A,
               const at::Tensor& D, at::IntArrayRef orders) {
  Inputs in;
  in.x = x.contiguous();
  in.proj = proj.contiguous();
  in.dt_weight = dt_weight.transpose(1, 2).contiguous();  // (K, R, C): channels adjoin
  in.dt_bias = dt_bias.contiguous();
  in.A = A.transpose(1, 2).contiguous();  // (K, S, C)
  in.D = D.contiguous();
  in.acc = in.A.options();
  ScanSizes& s = in.sizes;
  s = {};
  s.batch = x.size(0);
  s.height = x.size(1);
  s.width = x.size(2);
  s.length = s.height * s.width;
  s.channels = s.group_channels = x.size(3);
  s.states = A.size(2);
  s.rank = dt_weight.size(2);
  s.directions = static_cast<int64_t>(orders.size());
  s.softplus = true;
  split_scan(s, kind, x.scalar_type(), device);
  in.params = {in.dt_weight.const_data_ptr(),
               in.dt_bias.const_data_ptr(),
               in.A.const_data_ptr(),
               in.D.const_data_ptr(),
               nullptr,
               nullptr};
  view_rows(in.proj, s, in.low, in.B, in.C);
  return in;
}

int64_t state_count(const ScanSizes& s) {
  return s.batch * s.directions * s.chunks * s.states * s.channels;
}

}  // namespace

std::tuple<at::Tensor, at::Tensor> ss2d_scan_on(const ScanDevice& device, const at::Tensor& x,
                                                const at::Tensor& proj, const at::Tensor& dt_weight,
                                                const at::Tensor& dt_bias, const at::Tensor& A,
                                                const at::Tensor& D, at::IntArrayRef orders,
                                                at::ScalarType out_dtype, bool save_states) {
  check_ss2d_scan(x, proj, dt_weight, dt_bias, A, D, orders, device.type());
  check_ss2d_scan_out_dtype(x, out_dtype);
  const DeviceIo io = device_io(x.scalar_type());
  at::Tensor y = at::empty(x.sizes(), A.options().dtype(out_dtype));
  if (x.numel() == 0) return {y, at::empty({0}, A.options())};
  const Inputs in = prepare(device, ScanKind::kForward, x, proj, dt_weight, dt_bias, A, D, orders);
  at::Tensor states = at::empty({save_states ? state_count(in.sizes) : 0}, in.acc);
  const bool narrow = out_dtype != acc_type(x.scalar_type());
  const at::Tensor sum = narrow ? at::empty(x.sizes(), in.acc) : y;
  const ScanScratch scratch(in.sizes, in.acc);

  ScanForward args = {};
  args.sizes = in.sizes;
  args.io = io;
  args.params = in.params;
  args.x = map_nhwc(in.x);
  args.low = in.low;
  args.B = in.B;
  args.C = in.C;
  args.sum = map_nhwc(sum);
  if (narrow) args.y = map_nhwc(y);
  args.carry = scratch.carry.mutable_data_ptr();
  args.segment_dt = scratch.segment_dt.mutable_data_ptr();
  if (save_states) args.states = states.mutable_data_ptr();
  launch_forward(device, args, orders);
  return {y, states};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>
ss2d_scan_backward_on(const ScanDevice& device, const at::Tensor& grad_y, const at::Tensor& x,
                      const at::Tensor& proj, const at::Tensor& dt_weight,
                      const at::Tensor& dt_bias, const at::Tensor& A, const at::Tensor& D,
                      const at::Tensor& states, at::IntArrayRef orders) {
  check_ss2d_scan(x, proj, dt_weight, dt_bias, A, D, orders, device.type());
  check_ss2d_scan_grad_y(x, grad_y);
  if (x.numel() == 0) {
    return {at::zeros_like(x),       at::zeros_like(proj), at::zeros_like(dt_weight),
            at::zeros_like(dt_bias), at::zeros_like(A),    at::zeros_like(D)};
  }
  const Inputs in = prepare(device, ScanKind::kBackward, x, proj, dt_weight, dt_bias, A, D, orders);
  const ScanSizes& s = in.sizes;
  const auto io = x.scalar_type(), acc = acc_type(io);
  check_param("states", states, {state_count(s)}, acc, x.device());
  const at::Tensor grad = grad_y.contiguous(), saved = states.contiguous();
  at::Tensor grad_x = at::empty(in.x.sizes(), in.x.options());
  const at::Tensor sum = io == acc ? grad_x : at::empty(in.x.sizes(), in.acc);
  std::vector<int64_t> shape = in.proj.sizes().vec();
  shape.insert(shape.begin(), s.group_blocks);
  const at::Tensor proj_parts = at::empty(shape, in.acc);
  const int64_t rows = ParamRows(s, false, false).count;
  const at::Tensor param_parts =
      at::empty({s.batch * s.segments, s.directions, rows, s.channels}, in.acc);
  const ScanScratch scratch(s, in.acc);

  ScanBackward args = {};
  args.sizes = s;
  args.io = device_io(io);
  args.params = in.params;
  args.x = map_nhwc(in.x);
  args.low = in.low;
  args.B = in.B;
  args.C = in.C;
  args.grad_y = map_nhwc(grad);
  args.grad_y_is_acc = grad.scalar_type() == acc;
  args.states = saved.const_data_ptr();
  args.carry = scratch.carry.mutable_data_ptr();
  args.segment_dt = scratch.segment_dt.mutable_data_ptr();
  args.sum = map_nhwc(sum);
  if (io != acc) args.grad_x = map_nhwc(grad_x);
  view_rows(proj_parts, s, args.grad_low, args.grad_B, args.grad_C);
  args.low_part = args.row_part = in.proj.numel();
  args.grad_params = param_parts.mutable_data_ptr();
  launch_backward(device, args, orders);

  // Sums in a fixed order, and copies: the outputs of an op must not share memory.
  const auto dense = at::MemoryFormat::Contiguous;
  const at::Tensor grads = param_parts.sum(0).transpose(1, 2);  // (K, C, rows)
  const ParamRows row(s, false, false);
  return {grad_x,
          (s.group_blocks == 1 ? proj_parts[0] : proj_parts.sum(0)).to(io),
          grads.narrow(2, 0, s.rank).clone(dense),
          grads.select(2, row.bias).clone(dense),
          grads.narrow(2, row.A, s.states).clone(dense),
          grads.select(2, row.D).clone(dense)};
}

}  // namespace mmvmamba
