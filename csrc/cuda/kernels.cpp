// The CUDA kernels as torch ops: the device, its stream, and errors in words.
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "scan_face.h"
#include "scan_kernels.h"

namespace mmvmamba {
namespace {

// The current stream of a tensor's device, which is the current device for as long as this lives.
class CudaDevice : public ScanDevice {
 public:
  explicit CudaDevice(const at::Tensor& value)
      : guard_(value.device()), stream_(c10::cuda::getCurrentCUDAStream()) {}

  at::DeviceType type() const override { return at::kCUDA; }
  int64_t max_shared() const override {
    int bytes = 0;
    check(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin,
                                 guard_.current_device().index()));
    return bytes;
  }
  void forward(const ScanForward& args, bool summary) const override {
    check(launch_forward_kernel(args, summary, stream_));
  }
  void backward(const ScanBackward& args, bool summary) const override {
    check(launch_backward_kernel(args, summary, stream_));
  }
  void combine(const ScanCarry& args) const override {
    check(launch_combine_kernel(args, stream_));
  }

 private:
  static void check(cudaError_t status) {
    if (status == cudaSuccess) return;
    cudaGetLastError();  // an error of a launch is not to be met again by the next one
    TORCH_CHECK(
        status != cudaErrorNoKernelImageForDevice && status != cudaErrorInvalidDeviceFunction,
        "mmvmamba's CUDA kernels were not built for this GPU's architecture: build them "
        "again with TORCH_CUDA_ARCH_LIST set to its compute capability, such as \"9.0\" "
        "(`python -m mmvmamba.info` prints both)");
    TORCH_CHECK(false,
                "mmvmamba: a CUDA kernel could not be launched: ", cudaGetErrorString(status));
  }

  c10::cuda::CUDAGuard guard_;
  c10::cuda::CUDAStream stream_;
};

// The tensor by whose device a call goes. Where x itself is elsewhere, the face's check says so.
template <class... Tensors>
const at::Tensor& on_cuda(const at::Tensor& first, const Tensors&... others) {
  const at::Tensor* found = &first;
  ((found->is_cuda() ? void() : void(found = &others)), ...);
  return *found;
}

std::tuple<at::Tensor, at::Tensor> ss2d_scan(const at::Tensor& x, const at::Tensor& proj,
                                             const at::Tensor& dt_weight, const at::Tensor& dt_bias,
                                             const at::Tensor& A, const at::Tensor& D,
                                             at::IntArrayRef orders, at::ScalarType out_dtype,
                                             bool save_states) {
  const CudaDevice device(on_cuda(x, proj, dt_weight, dt_bias, A, D));
  return ss2d_scan_on(device, x, proj, dt_weight, dt_bias, A, D, orders, out_dtype, save_states);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>
ss2d_scan_backward(const at::Tensor& grad_y, const at::Tensor& x, const at::Tensor& proj,
                   const at::Tensor& dt_weight, const at::Tensor& dt_bias, const at::Tensor& A,
                   const at::Tensor& D, const at::Tensor& states, at::IntArrayRef orders) {
  const CudaDevice device(on_cuda(x, grad_y, proj, dt_weight, dt_bias, A, D, states));
  return ss2d_scan_backward_on(device, grad_y, x, proj, dt_weight, dt_bias, A, D, states, orders);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> selective_scan(
    const at::Tensor& u, const at::Tensor& delta, const at::Tensor& A, const at::Tensor& B,
    const at::Tensor& C, const OptionalTensor& D, const OptionalTensor& z,
    const OptionalTensor& delta_bias, bool delta_softplus, bool save_states) {
  const CudaDevice device(on_cuda(u, delta, A, B, C));
  return selective_scan_on(device, u, delta, A, B, C, D, z, delta_bias, delta_softplus,
                           save_states);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor,
           at::Tensor>
selective_scan_backward(const at::Tensor& grad_out, const at::Tensor& u, const at::Tensor& delta,
                        const at::Tensor& A, const at::Tensor& B, const at::Tensor& C,
                        const OptionalTensor& D, const OptionalTensor& z,
                        const OptionalTensor& delta_bias, const at::Tensor& states,
                        bool delta_softplus) {
  const CudaDevice device(on_cuda(u, grad_out, delta, A, B, C, states));
  return selective_scan_backward_on(device, grad_out, u, delta, A, B, C, D, z, delta_bias, states,
                                    delta_softplus);
}

}  // namespace

TORCH_LIBRARY_IMPL(mmvmamba, CUDA, m) {
  m.impl("ss2d_scan", ss2d_scan);
  m.impl("ss2d_scan_backward", ss2d_scan_backward);
  m.impl("selective_scan", selective_scan);
  m.impl("selective_scan_backward", selective_scan_backward);
}

}  // namespace mmvmamba
