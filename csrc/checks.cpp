// Checks of arguments that the kernels of all devices share.
#include "checks.h"

namespace mmvmamba {

void check_param(const char* name, const at::Tensor& value, at::IntArrayRef shape,
                 at::ScalarType type, at::Device device) {
  TORCH_CHECK_VALUE(value.sizes() == shape, name, " must have shape ", shape, ", but got ",
                    value.sizes());
  TORCH_CHECK_TYPE(value.scalar_type() == type, name, " must be ", type, ", but is ",
                   value.scalar_type());
  TORCH_CHECK_VALUE(value.device() == device, name, " must be on ", device, ", but is on ",
                    value.device());
}

namespace {

// The dispatcher picks the kernels by any of the arguments: the first one may be elsewhere.
void check_device(const char* name, const at::Tensor& value, at::DeviceType device) {
  TORCH_CHECK_VALUE(value.device().type() == device, name, " must be on ", device,
                    " as other arguments are, but is on ", value.device());
}

// B or C (batch, groups, states, length), or (channels, states) in the sums' type.
void check_weights(const char* name, const at::Tensor& value, const at::Tensor& u,
                   const at::Tensor& A) {
  if (value.dim() == 2) {
    check_param(name, value, {u.size(1), A.size(1)}, acc_type(u.scalar_type()), u.device());
    return;
  }
  TORCH_CHECK_VALUE(value.dim() == 4, name, " must have 2 or 4 dimensions, but got ",
                    value.sizes());
  TORCH_CHECK_VALUE(value.size(1) > 0 && u.size(1) % value.size(1) == 0, name, " has ",
                    value.size(1), " groups, which must divide the ", u.size(1), " channels of u");
  check_param(name, value, {u.size(0), value.size(1), A.size(1), u.size(2)}, u.scalar_type(),
              u.device());
}

}  // namespace

void check_ss2d_scan(const at::Tensor& x, const at::Tensor& proj, const at::Tensor& dt_weight,
                     const at::Tensor& dt_bias, const at::Tensor& A, const at::Tensor& D,
                     at::IntArrayRef orders, at::DeviceType device) {
  check_device("x", x, device);
  TORCH_CHECK_VALUE(x.dim() == 4, "x must have 4 dimensions (N, H, W, C), but got ", x.sizes());
  TORCH_CHECK_VALUE(dt_weight.dim() == 3 && A.dim() == 3,
                    "dt_weight and A must have 3 dimensions, but got ", dt_weight.sizes(), " and ",
                    A.sizes());
  TORCH_CHECK_VALUE(!orders.empty(), "orders must not be empty");
  for (int64_t order : orders) {
    TORCH_CHECK_VALUE(order >= 0 && order <= 3, "orders must be 0, 1, 2 or 3, but got ", order);
  }
  const int64_t K = orders.size(), C = x.size(3), R = dt_weight.size(2), S = A.size(2);
  TORCH_CHECK_VALUE(x.size(1) > 0 && x.size(2) > 0 && C > 0 && R > 0 && S > 0,
                    "height, width, channels, rank and states must be at least 1, but got x ",
                    x.sizes(), ", dt_weight ", dt_weight.sizes(), " and A ", A.sizes());
  const auto io = x.scalar_type(), acc = acc_type(io);
  check_param("proj", proj, {x.size(0), x.size(1), x.size(2), K, R + 2 * S}, io, x.device());
  check_param("dt_weight", dt_weight, {K, C, R}, acc, x.device());
  check_param("dt_bias", dt_bias, {K, C}, acc, x.device());
  check_param("A", A, {K, C, S}, acc, x.device());
  check_param("D", D, {K, C}, acc, x.device());
}

void check_ss2d_scan_out_dtype(const at::Tensor& x, at::ScalarType out_dtype) {
  const auto io = x.scalar_type(), acc = acc_type(io);
  TORCH_CHECK_TYPE(out_dtype == io || out_dtype == acc, "out_dtype must be ", io, " or ", acc,
                   ", but got ", out_dtype);
}

void check_ss2d_scan_grad_y(const at::Tensor& x, const at::Tensor& grad_y) {
  const auto io = x.scalar_type(), acc = acc_type(io);
  TORCH_CHECK_TYPE(grad_y.scalar_type() == io || grad_y.scalar_type() == acc, "grad_y must be ", io,
                   " or ", acc, ", but is ", grad_y.scalar_type());
  check_param("grad_y", grad_y, x.sizes(), grad_y.scalar_type(), x.device());
}

void check_selective_scan(const at::Tensor& u, const at::Tensor& delta, const at::Tensor& A,
                          const at::Tensor& B, const at::Tensor& C, const OptionalTensor& D,
                          const OptionalTensor& z, const OptionalTensor& delta_bias,
                          at::DeviceType device) {
  check_device("u", u, device);
  TORCH_CHECK_VALUE(u.dim() == 3, "u must have 3 dimensions (B, D, L), but got ", u.sizes());
  TORCH_CHECK_VALUE(A.dim() == 2 && A.size(1) > 0, "A must have shape (D, N), N at least 1, got ",
                    A.sizes());
  const auto io = u.scalar_type(), acc = acc_type(io);
  check_param("delta", delta, u.sizes(), io, u.device());
  check_param("A", A, {u.size(1), A.size(1)}, acc, u.device());
  check_weights("B", B, u, A);
  check_weights("C", C, u, A);
  TORCH_CHECK_VALUE(B.dim() == 2 || C.dim() == 2 || B.size(1) == C.size(1),
                    "B and C must have the same number of groups, but have ", B.size(1), " and ",
                    C.size(1));
  if (D.has_value()) check_param("D", *D, {u.size(1)}, acc, u.device());
  if (z.has_value()) check_param("z", *z, u.sizes(), io, u.device());
  if (delta_bias.has_value()) {
    check_param("delta_bias", *delta_bias, {u.size(1)}, acc, u.device());
  }
}

}  // namespace mmvmamba
