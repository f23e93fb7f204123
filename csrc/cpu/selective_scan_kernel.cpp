// The CPU face of selective_scan: checks, allocation, the split of the work, sums over its parts.
#include <torch/library.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "torch_common.h"

namespace mmvmamba {
namespace {

const void* pointer(const OptionalTensor& value) {
  return value.has_value() ? value->const_data_ptr() : nullptr;
}

OptionalTensor dense(const OptionalTensor& value) {
  return value.has_value() ? OptionalTensor(value->contiguous()) : value;
}

// Positions next to each other; strides over samples and channels are free.
at::Tensor along_length(const at::Tensor& value) {
  return value.stride(-1) == 1 || value.size(-1) <= 1 ? value : value.contiguous();
}

Sequences sequences(const OptionalTensor& value) {
  if (!value.has_value()) return {nullptr, 0, 0};
  return {value->const_data_ptr(), value->stride(0), value->stride(1)};
}

GroupWeights group_weights(const at::Tensor& value) {
  if (value.dim() == 2) return {nullptr, 0, 0, 0};
  return {value.const_data_ptr(), value.stride(0), value.stride(1), value.stride(2)};
}

struct Inputs {
  at::Tensor u, delta, A, B, C;
  OptionalTensor D, z, delta_bias;
  SelectiveSizes sizes;
  Kernels kernels;
  at::Tensor params;
  int64_t blocks;  // of one group
};

at::Tensor pack(const Inputs& in) {
  const auto& s = in.sizes;
  at::Tensor params =
      at::zeros({s.groups * in.blocks, 3 * s.states + 2, in.kernels.lanes}, in.A.options());
  in.kernels.selective.pack(s, in.A.const_data_ptr(),
                            in.B.dim() == 2 ? in.B.const_data_ptr() : nullptr,
                            in.C.dim() == 2 ? in.C.const_data_ptr() : nullptr,
                            pointer(in.delta_bias), pointer(in.D), params.mutable_data_ptr());
  return params;
}

Inputs check_inputs(const at::Tensor& u, const at::Tensor& delta, const at::Tensor& A,
                    const at::Tensor& B, const at::Tensor& C, const OptionalTensor& D,
                    const OptionalTensor& z, const OptionalTensor& delta_bias, bool softplus) {
  check_selective_scan(u, delta, A, B, C, D, z, delta_bias, at::kCPU);
  Inputs in;
  in.u = along_length(u);
  in.delta = along_length(delta);
  in.A = A.contiguous();
  in.B = B.dim() == 2 ? B.contiguous() : along_length(B);
  in.C = C.dim() == 2 ? C.contiguous() : along_length(C);
  in.D = dense(D);
  if (z.has_value()) in.z = along_length(*z);
  in.delta_bias = dense(delta_bias);
  in.kernels = best_kernels(io_of(u.scalar_type()));
  const int64_t groups = B.dim() == 4 ? B.size(1) : C.dim() == 4 ? C.size(1) : 1;
  const int64_t channels = std::max(groups, u.size(1));  // at least one block
  in.blocks = ceil_div(channels / groups, in.kernels.lanes);
  const int64_t units = std::max<int64_t>(1, u.size(0) * groups);
  int64_t parts = std::min(in.blocks, ceil_div(kItems, units));
  parts = ceil_div(in.blocks, ceil_div(in.blocks, parts));  // none is empty
  in.sizes = {u.size(0), u.size(1), u.size(2), A.size(1), groups, parts, softplus};
  if (u.size(1) > 0) in.params = pack(in);
  return in;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> selective_scan(
    const at::Tensor& u, const at::Tensor& delta, const at::Tensor& A, const at::Tensor& B,
    const at::Tensor& C, const OptionalTensor& D, const OptionalTensor& z,
    const OptionalTensor& delta_bias, bool delta_softplus, bool save_states) {
  const Inputs in = check_inputs(u, delta, A, B, C, D, z, delta_bias, delta_softplus);
  const auto& s = in.sizes;
  const auto options = in.A.options();
  const int64_t chunks = save_states ? ceil_div(s.length, kChunk) : 0;
  at::Tensor out = at::empty(u.sizes(), u.options());
  at::Tensor last_state = at::zeros({s.batch, s.channels, s.states}, options);
  // (batch, chunks, states, channels) in one dimension, see ss2d_scan.
  at::Tensor states = at::empty({s.batch * chunks * s.states * s.channels}, options);
  if (u.numel() == 0) return {out, last_state, states};

  const SelectiveForward args{s,
                              sequences(in.u),
                              sequences(in.delta),
                              sequences(in.z),
                              group_weights(in.B),
                              group_weights(in.C),
                              in.params.const_data_ptr(),
                              out.mutable_data_ptr(),
                              last_state.mutable_data_ptr(),
                              save_states ? states.mutable_data_ptr() : nullptr};
  at::parallel_for(0, s.batch * s.groups * s.parts, 1, [&](int64_t begin, int64_t end) {
    in.kernels.selective.forward(args, begin, end);
  });
  return {out, last_state, states};
}

using Gradients = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor,
                             at::Tensor, at::Tensor>;

// Parts of the gradient of shared weights; nothing for constant ones.
at::Tensor weight_parts(const Inputs& in, const at::Tensor& value) {
  const auto& s = in.sizes;
  if (value.dim() == 2) return at::empty({0}, in.A.options());
  return at::zeros({s.parts, s.batch, s.groups, s.states, s.length}, in.A.options());
}

Gradients selective_scan_backward(const at::Tensor& grad_out, const at::Tensor& u,
                                  const at::Tensor& delta, const at::Tensor& A, const at::Tensor& B,
                                  const at::Tensor& C, const OptionalTensor& D,
                                  const OptionalTensor& z, const OptionalTensor& delta_bias,
                                  const at::Tensor& states, bool delta_softplus) {
  const Inputs in = check_inputs(u, delta, A, B, C, D, z, delta_bias, delta_softplus);
  const auto& s = in.sizes;
  const auto io = u.scalar_type();
  check_param("grad_out", grad_out, u.sizes(), io, u.device());
  const auto none = [&] { return at::empty({0}, u.options()); };
  if (u.numel() == 0) {
    const auto zeros = [&](const OptionalTensor& v) { return v ? at::zeros_like(*v) : none(); };
    return {at::zeros_like(u), at::zeros_like(delta), at::zeros_like(A),
            at::zeros_like(B), at::zeros_like(C),     zeros(D),
            zeros(z),          zeros(delta_bias)};
  }
  check_param("states", states, {s.batch * ceil_div(s.length, kChunk) * s.states * s.channels},
              acc_type(io), u.device());
  const at::Tensor grad = along_length(grad_out), saved = states.contiguous();
  at::Tensor grad_u = at::empty(u.sizes(), u.options());
  at::Tensor grad_delta = at::empty(u.sizes(), u.options());
  at::Tensor grad_z = z.has_value() ? at::empty(u.sizes(), u.options()) : none();
  at::Tensor parts_B = weight_parts(in, B), parts_C = weight_parts(in, C);
  std::vector<int64_t> shape = in.params.sizes().vec();
  shape.insert(shape.begin(), s.batch);
  at::Tensor param_parts = at::empty(shape, in.A.options());

  const SelectiveBackward args{s,
                               sequences(in.u),
                               sequences(in.delta),
                               sequences(in.z),
                               sequences(grad),
                               group_weights(in.B),
                               group_weights(in.C),
                               in.params.const_data_ptr(),
                               saved.const_data_ptr(),
                               grad_u.mutable_data_ptr(),
                               grad_delta.mutable_data_ptr(),
                               z.has_value() ? grad_z.mutable_data_ptr() : nullptr,
                               B.dim() == 2 ? nullptr : parts_B.mutable_data_ptr(),
                               C.dim() == 2 ? nullptr : parts_C.mutable_data_ptr(),
                               param_parts.mutable_data_ptr()};
  at::parallel_for(0, s.batch * s.groups * s.parts, 1, [&](int64_t begin, int64_t end) {
    in.kernels.selective.backward(args, begin, end);
  });

  // [groups][blocks][row][lanes] -> [channels][row]
  const at::Tensor grads = sum_first(param_parts, in.A.scalar_type())
                               .unflatten(0, {s.groups, in.blocks})
                               .transpose(2, 3)
                               .flatten(1, 2)
                               .narrow(1, 0, s.channels / s.groups)
                               .flatten(0, 1);
  // Copies, even where a part is contiguous: the outputs of an op must not share memory.
  const auto dense = at::MemoryFormat::Contiguous;
  const auto rows = [&](int64_t first) { return grads.narrow(1, first, s.states).clone(dense); };
  const auto row = [&](int64_t index) { return grads.select(1, index).clone(dense); };
  const int64_t S = s.states;
  return {grad_u,
          grad_delta,
          rows(0),
          B.dim() == 2 ? rows(S) : sum_first(parts_B, io),
          C.dim() == 2 ? rows(2 * S) : sum_first(parts_C, io),
          D.has_value() ? row(3 * S + 1) : none(),
          grad_z,
          delta_bias.has_value() ? row(3 * S) : none()};
}

}  // namespace

TORCH_LIBRARY_IMPL(mmvmamba, CPU, m) {
  m.impl("selective_scan", selective_scan);
  m.impl("selective_scan_backward", selective_scan_backward);
}

}  // namespace mmvmamba
