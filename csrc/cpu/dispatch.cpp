// Choice of the build that this processor runs.
#include "dispatch.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include <algorithm>
#include <cstdlib>
#include <string>

namespace mmvmamba {
namespace {

enum class Isa { kDefault, kAvx2, kAvx512 };

#if defined(__x86_64__)
bool all_of(uint32_t value, uint32_t bits) { return (value & bits) == bits; }

// Bits of XCR0: the registers that the system keeps for each thread.
constexpr uint32_t kYmm = 0x06, kZmm = 0xe6, kTiles = 0x060000;  // of AVX, AVX-512 and AMX
uint32_t read_xcr0() {
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return low;
}

// As __builtin_cpu_supports, which on Windows needs a library of clang's own.
Isa widest_supported() {
  constexpr uint32_t kBasic = bit_OSXSAVE | bit_FMA, kAvx2 = bit_AVX2 | bit_BMI | bit_BMI2,
                     kAvx512 = bit_AVX512F | bit_AVX512DQ | bit_AVX512BW | bit_AVX512VL;
  uint32_t a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !all_of(c, kBasic)) return Isa::kDefault;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !all_of(b, kAvx2)) return Isa::kDefault;
  const uint32_t kept = read_xcr0();
  if (!all_of(kept, kYmm)) return Isa::kDefault;
  return all_of(kept, kZmm) && all_of(b, kAvx512) ? Isa::kAvx512 : Isa::kAvx2;
}

// AMX, or AMD's AVX512_BF16. Intel's does as many multiplications in a cycle as float32, and its
// operands must be converted and reordered first.
bool detect_fast_bfloat16() {
  constexpr uint32_t kAmx = 0x01400000;   // AMX-TILE and AMX-BF16 in edx
  constexpr uint32_t kAvx512Bf16 = 0x20;  // in eax of subleaf 1
  uint32_t a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !all_of(c, bit_OSXSAVE)) return false;
  const uint32_t kept = read_xcr0();
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  if (all_of(d, kAmx) && all_of(kept, kTiles)) return true;
  if (!__get_cpuid_count(7, 1, &a, &b, &c, &d) || !all_of(a, kAvx512Bf16)) return false;
  return all_of(kept, kZmm) && __get_cpuid(0, &a, &b, &c, &d) && b == signature_AMD_ebx;
}
#else
Isa widest_supported() { return Isa::kDefault; }
bool detect_fast_bfloat16() { return true; }  // unknown: the model keeps its own dtype
#endif

// The widest instruction set of this processor, capped by ATEN_CPU_CAPABILITY as torch's own are.
Isa detect() {
  const char* value = std::getenv("ATEN_CPU_CAPABILITY");
  const std::string cap = value ? value : "";
  const Isa limit = cap == "default" ? Isa::kDefault : cap == "avx2" ? Isa::kAvx2 : Isa::kAvx512;
  return std::min(limit, widest_supported());
}

Isa isa() {
  static const Isa value = detect();
  return value;
}

}  // namespace

const char* cpu_isa() {
  return isa() == Isa::kAvx512 ? "avx512" : isa() == Isa::kAvx2 ? "avx2" : "default";
}

bool has_fast_bfloat16() {
  static const bool value = detect_fast_bfloat16();
  return value;
}

Kernels best_kernels(Io io) {
#if defined(__x86_64__)
  if (isa() == Isa::kAvx512) return isa_avx512::kernels(io);
  if (isa() == Isa::kAvx2) return isa_avx2::kernels(io);
#endif
  return isa_default::kernels(io);
}

}  // namespace mmvmamba
