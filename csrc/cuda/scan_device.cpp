// The GPU that runs the scan kernels: its current stream, and errors in words.
#include "scan_device.h"

#include <cuda_runtime_api.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/macros.h>

#include "kernel_launch.h"

namespace mmvmamba {
namespace {

void check(cudaError_t status) {
  if (status == cudaErrorNoKernelImageForDevice || status == cudaErrorInvalidDeviceFunction) {
    cudaGetLastError();  // the next launch must not report it again
    STD_TORCH_CHECK(false,
                    "mmvmamba's CUDA kernels were not built for this GPU's architecture: build "
                    "them again with TORCH_CUDA_ARCH_LIST set to its compute capability, such as "
                    "\"9.0\" (`python -m mmvmamba.info` prints both)");
  }
  STD_CUDA_CHECK(status);
}

}  // namespace

ScanDevice::ScanDevice(const Tensor& value) : index_(value.get_device_index()), guard_(index_) {
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(index_, &stream_));
}

DeviceType ScanDevice::type() { return DeviceType::CUDA; }

// Of 128 multiprocessors with 512 threads each, as the launch bounds leave room for.
int64_t ScanDevice::target_threads() const { return 65536; }

int64_t ScanDevice::least_split() const { return 40; }

int64_t ScanDevice::max_shared() const {
  int bytes = 0;
  check(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, index_));
  return bytes;
}

void ScanDevice::run(const ScanForward& args, ScanPass pass) const {
  check(launch_forward_kernel(args, pass, static_cast<cudaStream_t>(stream_)));
}
void ScanDevice::run(const ScanBackward& args, ScanPass pass) const {
  check(launch_backward_kernel(args, pass, static_cast<cudaStream_t>(stream_)));
}
void ScanDevice::combine(const ScanCall& args) const {
  check(launch_combine_kernel(args, static_cast<cudaStream_t>(stream_)));
}

}  // namespace mmvmamba
