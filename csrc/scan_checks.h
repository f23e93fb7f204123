// Argument checks shared by the kernels of all devices. Python checks first, with better messages.
// These keep a direct call of an op memory-safe. They raise RuntimeError, the only exception type
// of the stable ABI.
#pragma once

#include "scan_tensors.h"

namespace mmvmamba {

inline std::string shape_text(const Tensor& value) { return shape_text(value.sizes()); }

// Checks the shape and dtype of an argument, and that it is on the device of another.
inline void check_argument(const char* name, const Tensor& value, Shape shape, ScalarType type,
                           const Tensor& like) {
  STD_TORCH_CHECK(value.sizes().equals(shape), name, " must have shape ", shape_text(shape),
                  ", but got ", shape_text(value));
  STD_TORCH_CHECK(value.scalar_type() == type, name, " must be ", torch::headeronly::toString(type),
                  ", but is ", torch::headeronly::toString(value.scalar_type()));
  STD_TORCH_CHECK(value.device() == like.device(), name,
                  " must be on the same device as the other arguments");
}

// The dispatcher selects a kernel by any tensor argument, so the first may be on another device.
inline void check_device(const char* name, const Tensor& value, DeviceType device) {
  STD_TORCH_CHECK(value.device().type() == device, name,
                  " must be on the same device as the other arguments");
}

inline void check_ss2d_scan(const Tensor& x, const Tensor& proj, const Tensor& dt_weight,
                            const Tensor& dt_bias, const Tensor& A, const Tensor& D,
                            const std::vector<int64_t>& orders, DeviceType device) {
  check_device("x", x, device);
  STD_TORCH_CHECK(x.dim() == 4, "x must have 4 dimensions (N, H, W, C), but got ", shape_text(x));
  STD_TORCH_CHECK(dt_weight.dim() == 3 && A.dim() == 3,
                  "dt_weight and A must have 3 dimensions, but got ", shape_text(dt_weight),
                  " and ", shape_text(A));
  STD_TORCH_CHECK(!orders.empty(), "orders must not be empty");
  for (int64_t order : orders) {
    STD_TORCH_CHECK(order >= 0 && order <= 3, "orders must be 0, 1, 2 or 3, but got ", order);
  }
  const int64_t K = orders.size(), C = x.size(3), R = dt_weight.size(2), S = A.size(2);
  STD_TORCH_CHECK(x.size(1) > 0 && x.size(2) > 0 && C > 0 && R > 0 && S > 0,
                  "height, width, channels, rank and states must be at least 1, but got x ",
                  shape_text(x), ", dt_weight ", shape_text(dt_weight), " and A ", shape_text(A));
  const auto io = x.scalar_type(), acc = acc_type(io);
  check_argument("proj", proj, {x.size(0), x.size(1), x.size(2), K, R + 2 * S}, io, x);
  check_argument("dt_weight", dt_weight, {K, C, R}, acc, x);
  check_argument("dt_bias", dt_bias, {K, C}, acc, x);
  check_argument("A", A, {K, C, S}, acc, x);
  check_argument("D", D, {K, C}, acc, x);
}

inline void check_ss2d_scan_out_dtype(const Tensor& x, ScalarType out_dtype) {
  const auto io = x.scalar_type(), acc = acc_type(io);
  STD_TORCH_CHECK(out_dtype == io || out_dtype == acc, "out_dtype must be ",
                  torch::headeronly::toString(io), " or ", torch::headeronly::toString(acc),
                  ", but got ", torch::headeronly::toString(out_dtype));
}

inline void check_ss2d_scan_grad_y(const Tensor& x, const Tensor& grad_y) {
  const auto io = x.scalar_type(), acc = acc_type(io);
  const auto type = grad_y.scalar_type() == acc ? acc : io;
  check_argument("grad_y", grad_y, x.sizes(), type, x);
}

// B or C of selective_scan: (batch, groups, states, length), or (channels, states) in the sums'
// dtype.
inline void check_group_weights(const char* name, const Tensor& value, const Tensor& u,
                                const Tensor& A) {
  if (value.dim() == 2) {
    check_argument(name, value, {u.size(1), A.size(1)}, acc_type(u.scalar_type()), u);
    return;
  }
  STD_TORCH_CHECK(value.dim() == 4, name, " must have 2 or 4 dimensions, but got ",
                  shape_text(value));
  STD_TORCH_CHECK(value.size(1) > 0 && u.size(1) % value.size(1) == 0, name, " has ", value.size(1),
                  " groups, which must divide the ", u.size(1), " channels of u");
  check_argument(name, value, {u.size(0), value.size(1), A.size(1), u.size(2)}, u.scalar_type(), u);
}

inline void check_selective_scan(const Tensor& u, const Tensor& delta, const Tensor& A,
                                 const Tensor& B, const Tensor& C, const OptionalTensor& D,
                                 const OptionalTensor& z, const OptionalTensor& delta_bias,
                                 DeviceType device) {
  check_device("u", u, device);
  STD_TORCH_CHECK(u.dim() == 3, "u must have 3 dimensions (B, D, L), but got ", shape_text(u));
  STD_TORCH_CHECK(A.dim() == 2 && A.size(1) > 0, "A must have shape (D, N), N at least 1, but got ",
                  shape_text(A));
  const auto io = u.scalar_type(), acc = acc_type(io);
  check_argument("delta", delta, u.sizes(), io, u);
  check_argument("A", A, {u.size(1), A.size(1)}, acc, u);
  check_group_weights("B", B, u, A);
  check_group_weights("C", C, u, A);
  STD_TORCH_CHECK(B.dim() == 2 || C.dim() == 2 || B.size(1) == C.size(1),
                  "B and C must have the same number of groups, but have ", B.size(1), " and ",
                  C.size(1));
  if (D.has_value()) check_argument("D", *D, {u.size(1)}, acc, u);
  if (z.has_value()) check_argument("z", *z, u.sizes(), io, u);
  if (delta_bias.has_value()) check_argument("delta_bias", *delta_bias, {u.size(1)}, acc, u);
}

}  // namespace mmvmamba
