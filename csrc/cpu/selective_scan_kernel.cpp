// selective_scan on a CPU: checks, allocation, the split of the work, and the sums over its parts.
#include <algorithm>

#include "../scan_checks.h"
#include "dispatch_torch.h"
#include "partial_sums.h"

namespace mmvmamba {
namespace {

// Positions next to each other; strides over samples and channels are free.
Tensor with_unit_stride(const Tensor& value) {
  const int64_t last = value.dim() - 1;
  const bool dense = value.stride(last) == 1 || value.size(last) <= 1;
  return dense ? value : as_contiguous(value);
}
OptionalTensor with_unit_stride(const OptionalTensor& value) {
  return value.has_value() ? OptionalTensor(with_unit_stride(*value)) : value;
}

Sequences sequences(const OptionalTensor& value) {
  if (!value.has_value()) return {nullptr, 0, 0};
  return {value->const_data_ptr(), value->stride(0), value->stride(1)};
}

GroupWeights group_weights(const Tensor& value) {
  if (value.dim() == 2) return {nullptr, 0, 0, 0};
  return {value.const_data_ptr(), value.stride(0), value.stride(1), value.stride(2)};
}

struct Inputs {
  Tensor u, delta, A, B, C;
  OptionalTensor D, z, delta_bias;
  SelectiveSizes sizes;
  Kernels kernels;
  int64_t blocks;  // of one group

  Sizes packed_shape() const {
    return {sizes.groups * blocks, 3 * sizes.states + 2, kernels.lanes};
  }
};

Inputs prepare(const Tensor& u, const Tensor& delta, const Tensor& A, const Tensor& B,
               const Tensor& C, const OptionalTensor& D, const OptionalTensor& z,
               const OptionalTensor& delta_bias, bool softplus) {
  const Kernels kernels = best_kernels(u.scalar_type());
  const int64_t groups = B.dim() == 4 ? B.size(1) : C.dim() == 4 ? C.size(1) : 1;
  const int64_t channels = std::max(groups, u.size(1));  // at least one block
  const int64_t blocks = ceil_div(channels / groups, kernels.lanes);
  const int64_t units = std::max<int64_t>(1, u.size(0) * groups);
  int64_t parts = std::min(blocks, ceil_div(kWorkItems, units));
  parts = ceil_div(blocks, ceil_div(blocks, parts));  // none is empty
  return {with_unit_stride(u),
          with_unit_stride(delta),
          as_contiguous(A),
          B.dim() == 2 ? as_contiguous(B) : with_unit_stride(B),
          C.dim() == 2 ? as_contiguous(C) : with_unit_stride(C),
          as_contiguous(D),
          with_unit_stride(z),
          as_contiguous(delta_bias),
          {u.size(0), u.size(1), u.size(2), A.size(1), groups, parts, softplus},
          kernels,
          blocks};
}

Tensor pack(const Inputs& in) {
  Tensor params = zeros_on(in.u, in.packed_shape(), in.A.scalar_type());
  in.kernels.selective.pack(
      in.sizes, in.A.const_data_ptr(), in.B.dim() == 2 ? in.B.const_data_ptr() : nullptr,
      in.C.dim() == 2 ? in.C.const_data_ptr() : nullptr, data_or_null(in.delta_bias),
      data_or_null(in.D), params.mutable_data_ptr());
  return params;
}

// (batch, chunks, states, channels) in one dimension, see ss2d_scan.
int64_t state_count(const SelectiveSizes& s) {
  return s.batch * ceil_div(s.length, kChunk) * s.states * s.channels;
}

std::tuple<Tensor, Tensor, Tensor> selective_scan(const Tensor& u, const Tensor& delta,
                                                  const Tensor& A, const Tensor& B, const Tensor& C,
                                                  const OptionalTensor& D, const OptionalTensor& z,
                                                  const OptionalTensor& delta_bias,
                                                  bool delta_softplus, bool save_states) {
  check_selective_scan(u, delta, A, B, C, D, z, delta_bias, DeviceType::CPU);
  const Inputs in = prepare(u, delta, A, B, C, D, z, delta_bias, delta_softplus);
  const SelectiveSizes& s = in.sizes;
  const auto io = u.scalar_type(), acc = acc_type(io);
  const Tensor out = empty_on(u, u.sizes(), io);
  const Tensor last_state = zeros_on(u, {s.batch, s.channels, s.states}, acc);
  const Tensor states = empty_on(u, {save_states ? state_count(s) : 0}, acc);
  if (u.numel() == 0) return {out, last_state, states};

  const Tensor params = pack(in);
  const SelectiveForward args{s,
                              sequences(in.u),
                              sequences(in.delta),
                              sequences(in.z),
                              group_weights(in.B),
                              group_weights(in.C),
                              params.const_data_ptr(),
                              out.mutable_data_ptr(),
                              last_state.mutable_data_ptr(),
                              save_states ? states.mutable_data_ptr() : nullptr};
  torch::stable::parallel_for(0, s.batch * s.groups * s.parts, 1, [&](int64_t begin, int64_t end) {
    in.kernels.selective.forward(args, begin, end);
  });
  return {out, last_state, states};
}

using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

// The gradient of shared weights as sums over parts of a group's channels; none of constant ones.
std::optional<PartialSums> shared_weight_sums(const Inputs& in, const Tensor& weights) {
  if (weights.dim() == 2) return std::nullopt;
  PartialSums sums(in.u, in.sizes.parts, weights.sizes(), in.u.scalar_type());
  torch::stable::zero_(sums.parts);  // the kernels add to them
  return sums;
}

// The gradients of packed parameters: (groups * blocks, rows, lanes) to (channels, rows).
Tensor unpack(const Tensor& packed, const Inputs& in) {
  const SelectiveSizes& s = in.sizes;
  const int64_t rows = 3 * s.states + 2, lanes = in.kernels.lanes,
                per_group = s.channels / s.groups;
  const Tensor by_lane = torch::stable::transpose(packed, 1, 2);  // (groups * blocks, lanes, rows)
  Tensor channels = torch::stable::reshape(by_lane, Sizes{s.groups, in.blocks * lanes, rows});
  return torch::stable::reshape(torch::stable::narrow(channels, 1, 0, per_group),
                                Sizes{s.channels, rows});
}

Gradients selective_scan_backward(const Tensor& grad_out, const Tensor& u, const Tensor& delta,
                                  const Tensor& A, const Tensor& B, const Tensor& C,
                                  const OptionalTensor& D, const OptionalTensor& z,
                                  const OptionalTensor& delta_bias, const Tensor& states,
                                  bool delta_softplus) {
  check_selective_scan(u, delta, A, B, C, D, z, delta_bias, DeviceType::CPU);
  const Inputs in = prepare(u, delta, A, B, C, D, z, delta_bias, delta_softplus);
  const SelectiveSizes& s = in.sizes;
  const auto io = u.scalar_type(), acc = acc_type(io);
  check_argument("grad_out", grad_out, u.sizes(), io, u);
  const auto none = [&] { return empty_on(u, {0}, io); };
  if (u.numel() == 0) {
    const auto zeros = [&](const OptionalTensor& v) { return v ? zeros_as(*v) : none(); };
    return {zeros_as(u), zeros_as(delta), zeros_as(A), zeros_as(B),
            zeros_as(C), zeros(D),        zeros(z),    zeros(delta_bias)};
  }
  check_argument("states", states, {state_count(s)}, acc, u);
  const Tensor grad = with_unit_stride(grad_out), saved = as_contiguous(states);
  const Tensor params = pack(in);
  const Tensor grad_u = empty_on(u, u.sizes(), io), grad_delta = empty_on(u, u.sizes(), io);
  const Tensor grad_z = z.has_value() ? empty_on(u, u.sizes(), io) : none();
  const auto grad_B = shared_weight_sums(in, B), grad_C = shared_weight_sums(in, C);
  const PartialSums grad_params(u, s.batch, in.packed_shape(), acc);

  const SelectiveBackward args{s,
                               sequences(in.u),
                               sequences(in.delta),
                               sequences(in.z),
                               sequences(grad),
                               group_weights(in.B),
                               group_weights(in.C),
                               params.const_data_ptr(),
                               saved.const_data_ptr(),
                               grad_u.mutable_data_ptr(),
                               grad_delta.mutable_data_ptr(),
                               z.has_value() ? grad_z.mutable_data_ptr() : nullptr,
                               grad_B.has_value() ? grad_B->data() : nullptr,
                               grad_C.has_value() ? grad_C->data() : nullptr,
                               grad_params.data()};
  torch::stable::parallel_for(0, s.batch * s.groups * s.parts, 1, [&](int64_t begin, int64_t end) {
    in.kernels.selective.backward(args, begin, end);
  });

  Tensor rows = unpack(grad_params.sum(), in);
  const int64_t S = s.states;
  const auto take = [&](int64_t first) {
    return contiguous_copy(torch::stable::narrow(rows, 1, first, S));
  };
  const auto take_one = [&](int64_t row) {
    return contiguous_copy(torch::stable::select(rows, 1, row));
  };
  return {grad_u,
          grad_delta,
          take(0),
          grad_B.has_value() ? grad_B->sum() : take(S),
          grad_C.has_value() ? grad_C->sum() : take(2 * S),
          D.has_value() ? take_one(3 * S + 1) : none(),
          grad_z,
          delta_bias.has_value() ? take_one(3 * S) : none()};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(mmvmamba, CPU, m) {
  m.impl("selective_scan", TORCH_BOX(&selective_scan));
  m.impl("selective_scan_backward", TORCH_BOX(&selective_scan_backward));
}

}  // namespace mmvmamba
