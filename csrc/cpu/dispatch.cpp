// Choice of the build that this processor runs.
#include "dispatch.h"

#include <cstdlib>

#include "../scan_tensors.h"

namespace mmvmamba {
namespace {

enum class Isa { kDefault, kAvx2, kAvx512 };

// The widest instruction set of this processor, capped by ATEN_CPU_CAPABILITY as torch's own are.
Isa detect() {
#if defined(__x86_64__)
  const char* value = std::getenv("ATEN_CPU_CAPABILITY");
  const std::string cap = value ? value : "";
  if (cap == "default") return Isa::kDefault;
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl");
  if (avx512 && cap != "avx2") return Isa::kAvx512;
  if (avx2) return Isa::kAvx2;
#endif
  return Isa::kDefault;
}

Isa isa() {
  static const Isa value = detect();
  return value;
}

Io io_of(ScalarType type) {
  switch (type) {
    case ScalarType::Float:
      return Io::kFloat;
    case ScalarType::BFloat16:
      return Io::kBFloat16;
    case ScalarType::Double:
      return Io::kDouble;
    default:
      STD_TORCH_CHECK(false, "the CPU kernels take float32, bfloat16 or float64, not ",
                      torch::headeronly::toString(type));
  }
}

// The name of the instruction set: "default", "avx2" or "avx512".
std::string cpu_isa() {
  return isa() == Isa::kAvx512 ? "avx512" : isa() == Isa::kAvx2 ? "avx2" : "default";
}

}  // namespace

Kernels best_kernels(ScalarType type) {
  const Io io = io_of(type);
#if defined(__x86_64__)
  if (isa() == Isa::kAvx512) return isa_avx512::kernels(io);
  if (isa() == Isa::kAvx2) return isa_avx2::kernels(io);
#endif
  return isa_default::kernels(io);
}

STABLE_TORCH_LIBRARY_FRAGMENT(mmvmamba, m) { m.def("cpu_isa() -> str"); }

STABLE_TORCH_LIBRARY_IMPL(mmvmamba, CompositeExplicitAutograd, m) {
  m.impl("cpu_isa", TORCH_BOX(&cpu_isa));
}

}  // namespace mmvmamba
