// Choice of the build that this processor runs.
#include "kernels.h"

#include <cstdlib>
#include <string>

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

}  // namespace

Kernels best_kernels(Io io) {
#if defined(__x86_64__)
  if (isa() == Isa::kAvx512) return isa_avx512::kernels(io);
  if (isa() == Isa::kAvx2) return isa_avx2::kernels(io);
#endif
  return isa_default::kernels(io);
}

const char* best_isa() {
  return isa() == Isa::kAvx512 ? "avx512" : isa() == Isa::kAvx2 ? "avx2" : "default";
}

}  // namespace mmvmamba
