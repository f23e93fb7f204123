// Choice of the build that this processor runs.
#include "kernels.h"

#include <cstdlib>
#include <string>

namespace mmvmamba {

enum class Isa { kDefault, kAvx2, kAvx512 };

// The widest instruction set of this processor, capped by ATEN_CPU_CAPABILITY as torch's own are.
static Isa detect() {
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

SS2DKernels ss2d_kernels(Io io) {
  static const Isa isa = detect();
#if defined(__x86_64__)
  if (isa == Isa::kAvx512) return isa_avx512::ss2d_kernels(io);
  if (isa == Isa::kAvx2) return isa_avx2::ss2d_kernels(io);
#endif
  return isa_default::ss2d_kernels(io);
}

}  // namespace mmvmamba
