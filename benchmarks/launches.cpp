// The host code of ss2d_scan over a CUDA runtime that records launches and makes none: tensors are
// on the CPU, and no kernel reads or writes them.
#include <cuda_runtime_api.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/macros.h>

#include <map>
#include <sstream>
#include <string>

#include "cuda/kernel_launch.h"
#include "cuda/scan_launch.h"
#include "scan_checks.h"

// What follows is implemented for CUDA and the library mmvmamba.
#undef STABLE_TORCH_LIBRARY_FRAGMENT
#undef STABLE_TORCH_LIBRARY_IMPL
#define STABLE_TORCH_LIBRARY_FRAGMENT(library, m) \
  _STABLE_TORCH_LIBRARY_FRAGMENT(mmvmamba_launches, m, C10_UID)
#define STABLE_TORCH_LIBRARY_IMPL(library, key, m) \
  _STABLE_TORCH_LIBRARY_IMPL(mmvmamba_launches, CPU, m, C10_UID)
#define CUDA CPU
#include "cuda/scan_device.cpp"
#include "cuda/scan_launch.cpp"
#include "cuda/ss2d_scan_kernel.cpp"
#include "ss2d_scan.cpp"

namespace mmvmamba {

// The kernels of the types that are not counted.
template <typename io_t>
cudaError_t launch_forward_io(const ScanForward&, ScanPass, cudaStream_t) {
  return cudaErrorInvalidValue;
}
template <typename io_t>
cudaError_t launch_backward_io(const ScanBackward&, ScanPass, cudaStream_t) {
  return cudaErrorInvalidValue;
}
#define MMVMAMBA_NOT_COUNTED(io_t)                                                          \
  template cudaError_t launch_forward_io<io_t>(const ScanForward&, ScanPass, cudaStream_t); \
  template cudaError_t launch_backward_io<io_t>(const ScanBackward&, ScanPass, cudaStream_t)
MMVMAMBA_NOT_COUNTED(float);
MMVMAMBA_NOT_COUNTED(double);
MMVMAMBA_NOT_COUNTED(torch::headeronly::BFloat16);

}  // namespace mmvmamba

namespace {

constexpr int kMaxShared = 227 * 1024;  // of sm_90

struct Config {
  dim3 grid, block;
  size_t shared;
  cudaStream_t stream;
} config;

std::map<const void*, std::string>& names() {
  static std::map<const void*, std::string> value;
  return value;
}
std::ostringstream launches;

size_t argument_bytes(const std::string& name) {
  const auto has = [&](const char* part) { return name.find(part) != std::string::npos; };
  if (has("ScanForwardE")) return sizeof(mmvmamba::ScanForward);
  return has("ScanBackwardE") ? sizeof(mmvmamba::ScanBackward) : sizeof(mmvmamba::ScanCall);
}

void write_bytes(const void* from, size_t count) {
  constexpr char digits[] = "0123456789abcdef";
  for (size_t i = 0; i < count; ++i) {
    const unsigned char byte = static_cast<const unsigned char*>(from)[i];
    launches << digits[byte / 16] << digits[byte % 16];
  }
}

}  // namespace

extern "C" {

// A line for each launch since the last call: the kernel, its blocks, threads, bytes of shared
// memory and arguments.
const char* mmvmamba_take_launches() {
  static std::string text;
  text = launches.str();
  launches.str("");
  return text.c_str();
}

void** __cudaRegisterFatBinary(void*) { return nullptr; }
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
void __cudaRegisterFunction(void**, const char* kernel, char*, const char* name, int, uint3*,
                            uint3*, dim3*, dim3*, int*) {
  names()[kernel] = name;
}
unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, cudaStream_t stream) {
  config = {grid, block, shared, stream};
  return 0;
}
cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared, void* stream) {
  *grid = config.grid;
  *block = config.block;
  *shared = config.shared;
  *static_cast<cudaStream_t*>(stream) = config.stream;
  return cudaSuccess;
}
cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* function) {
  *kernel = static_cast<cudaKernel_t>(const_cast<void*>(function));
  return cudaSuccess;
}
cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void** arguments,
                               size_t shared, cudaStream_t) {
  const std::string& name = names().at(kernel);
  launches << name << ' ' << grid.x << ' ' << block.x << ' ' << shared << ' ';
  write_bytes(arguments[0], argument_bytes(name));
  if (name.back() == 'l') write_bytes(arguments[1], sizeof(int64_t));
  launches << '\n';
  return cudaSuccess;
}

cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  *value = kMaxShared;
  return cudaSuccess;
}
cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int) { return cudaSuccess; }
cudaError_t cudaGetLastError() { return cudaSuccess; }
const char* cudaGetErrorString(cudaError_t) { return ""; }

AOTITorchError aoti_torch_get_current_cuda_stream(int32_t, void** stream) {
  *stream = nullptr;
  return AOTI_TORCH_SUCCESS;
}
AOTITorchError aoti_torch_create_device_guard(int32_t, DeviceGuardHandle* guard) {
  *guard = nullptr;
  return AOTI_TORCH_SUCCESS;
}
AOTITorchError aoti_torch_delete_device_guard(DeviceGuardHandle) { return AOTI_TORCH_SUCCESS; }
AOTITorchError torch_c10_cuda_check_msg(int32_t, const char*, const char*, uint32_t, bool,
                                        char** message) {
  *message = nullptr;
  return AOTI_TORCH_SUCCESS;
}
void torch_c10_cuda_free_error_msg(char*) {}

}  // extern "C"
