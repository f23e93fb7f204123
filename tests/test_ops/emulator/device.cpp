// What the host code finds in torch where that has CUDA, and ops that set the emulator.
#include "register.h"

#include <cstring>
#include <string>
#include <vector>

#include "emulator.h"

extern "C" {

// The names are torch's own, and torch's other functions stay as they are: within this library
// these are found first.
AOTITorchError aoti_torch_get_current_cuda_stream(int32_t, void** stream) {
  *stream = nullptr;
  return AOTI_TORCH_SUCCESS;
}
AOTITorchError aoti_torch_create_device_guard(int32_t, DeviceGuardHandle* guard) {
  *guard = nullptr;
  return AOTI_TORCH_SUCCESS;
}
AOTITorchError aoti_torch_delete_device_guard(DeviceGuardHandle) { return AOTI_TORCH_SUCCESS; }

AOTITorchError torch_c10_cuda_check_msg(int32_t error, const char*, const char*, uint32_t, bool,
                                        char** message) {
  *message = nullptr;
  if (error == cudaSuccess) return AOTI_TORCH_SUCCESS;
  const std::string text =
      std::string("CUDA error: ") + cudaGetErrorString(static_cast<cudaError_t>(error));
  *message = new char[text.size() + 1];
  std::memcpy(*message, text.c_str(), text.size() + 1);
  return AOTI_TORCH_SUCCESS;
}
void torch_c10_cuda_free_error_msg(char* message) { delete[] message; }

}  // extern "C"

namespace {

void set(int64_t seed, int64_t target_blocks, int64_t max_shared) {
  auto& settings = cuda_emulator::settings();
  cuda_emulator::set_seed(static_cast<uint64_t>(seed));
  settings.target_blocks = target_blocks;
  settings.max_shared = max_shared;
  settings.launches.clear();
}

// Blocks, threads of a block and bytes of shared memory of every launch since `set`.
std::vector<int64_t> launches() {
  std::vector<int64_t> out;
  for (const auto& launch : cuda_emulator::settings().launches) {
    out.insert(out.end(), {launch.blocks, launch.threads, launch.shared});
  }
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(mmvmamba, m) {
  m.def("set(int seed, int target_blocks, int max_shared) -> ()");
  m.def("launches() -> int[]");
}

STABLE_TORCH_LIBRARY_IMPL(mmvmamba, CompositeExplicitAutograd, m) {
  m.impl("set", TORCH_BOX(&set));
  m.impl("launches", TORCH_BOX(&launches));
}
