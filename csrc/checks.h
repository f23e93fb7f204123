// Checks of arguments that the kernels of all devices share. Python has checked them before, with
// better words; these stand between a direct call of an op and memory.
#pragma once

#include <ATen/ATen.h>

#include <optional>

namespace mmvmamba {

using OptionalTensor = std::optional<at::Tensor>;

// The type of states and sums for an I/O type.
inline c10::ScalarType acc_type(c10::ScalarType type) {
  return type == c10::kDouble ? c10::kDouble : c10::kFloat;
}

// Checks shape, dtype and device of an argument.
void check_param(const char* name, const at::Tensor& value, at::IntArrayRef shape,
                 at::ScalarType type, at::Device device);

// Check the arguments of an op for kernels of a type of device.
void check_ss2d_scan(const at::Tensor& x, const at::Tensor& proj, const at::Tensor& dt_weight,
                     const at::Tensor& dt_bias, const at::Tensor& A, const at::Tensor& D,
                     at::IntArrayRef orders, at::DeviceType device);
void check_ss2d_scan_out_dtype(const at::Tensor& x, at::ScalarType out_dtype);
void check_ss2d_scan_grad_y(const at::Tensor& x, const at::Tensor& grad_y);

void check_selective_scan(const at::Tensor& u, const at::Tensor& delta, const at::Tensor& A,
                          const at::Tensor& B, const at::Tensor& C, const OptionalTensor& D,
                          const OptionalTensor& z, const OptionalTensor& delta_bias,
                          at::DeviceType device);

}  // namespace mmvmamba
