// The torch faces of both ops for a ScanDevice: checks, allocation, the final sums.
#pragma once

#include "../checks.h"
#include "scan_launch.h"

namespace mmvmamba {

std::tuple<at::Tensor, at::Tensor> ss2d_scan_on(const ScanDevice& device, const at::Tensor& x,
                                                const at::Tensor& proj, const at::Tensor& dt_weight,
                                                const at::Tensor& dt_bias, const at::Tensor& A,
                                                const at::Tensor& D, at::IntArrayRef orders,
                                                at::ScalarType out_dtype, bool save_states);

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>
ss2d_scan_backward_on(const ScanDevice& device, const at::Tensor& grad_y, const at::Tensor& x,
                      const at::Tensor& proj, const at::Tensor& dt_weight,
                      const at::Tensor& dt_bias, const at::Tensor& A, const at::Tensor& D,
                      const at::Tensor& states, at::IntArrayRef orders);

std::tuple<at::Tensor, at::Tensor, at::Tensor> selective_scan_on(
    const ScanDevice& device, const at::Tensor& u, const at::Tensor& delta, const at::Tensor& A,
    const at::Tensor& B, const at::Tensor& C, const OptionalTensor& D, const OptionalTensor& z,
    const OptionalTensor& delta_bias, bool delta_softplus, bool save_states);

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor,
           at::Tensor>
selective_scan_backward_on(const ScanDevice& device, const at::Tensor& grad_out,
                           const at::Tensor& u, const at::Tensor& delta, const at::Tensor& A,
                           const at::Tensor& B, const at::Tensor& C, const OptionalTensor& D,
                           const OptionalTensor& z, const OptionalTensor& delta_bias,
                           const at::Tensor& states, bool delta_softplus);

// The kernels' name for a dtype; a TypeError where they do not take it.
DeviceIo device_io(at::ScalarType type);

}  // namespace mmvmamba
