// Instructions that C++ has no name for, and what is said to a warp. Nothing else here assumes an
// architecture: each has a plain form, or is used only where `kHasMma` says that it exists. Lanes
// work together in groups of 32 or fewer, whatever a warp has.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "../scan_common.h"

#if defined(__CUDA_ARCH__)
#define MMVMAMBA_PTX 1
#else
#define MMVMAMBA_PTX 0
#endif

namespace mmvmamba {

// 2^x with a relative error of 2^-22; results and arguments below 2^-126 are zero.
MMVMAMBA_HD float exp2_approx(float x) {
#if MMVMAMBA_PTX
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return ::exp2f(x);
#endif
}

// 1 / x with a relative error of 2^-23.
MMVMAMBA_HD float rcp_approx(float x) {
#if MMVMAMBA_PTX
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return 1 / x;
#endif
}

// A product in one instruction. Left to itself, the compiler widens a factor ahead of a loop and
// multiplies 64 bits, in four.
MMVMAMBA_HD int64_t multiply_wide(int32_t a, int32_t b) {
#if MMVMAMBA_PTX
  int64_t product;
  asm("mul.wide.s32 %0, %1, %2;" : "=l"(product) : "r"(a), "r"(b));
  return product;
#else
  return static_cast<int64_t>(a) * b;
#endif
}

// Two values of 16 bits in a word, the first in the lower half.
template <typename half_t>
MMVMAMBA_HD uint32_t pack(float low, float high) {
#if MMVMAMBA_PTX && __CUDA_ARCH__ >= 800
  uint32_t word;
  if constexpr (std::is_same_v<half_t, torch::headeronly::Half>) {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  } else {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  }
  return word;
#else
  return uint32_t{half_t(low).x} | uint32_t{half_t(high).x} << 16;
#endif
}

// Whether the tensor cores multiply values of an I/O type.
#if MMVMAMBA_PTX && __CUDA_ARCH__ >= 800
template <typename io_t>
constexpr bool kHasMma = sizeof(io_t) == 2;
#elif MMVMAMBA_PTX && __CUDA_ARCH__ >= 750
template <typename io_t>
constexpr bool kHasMma = std::is_same_v<io_t, torch::headeronly::Half>;
#else
template <typename io_t>
constexpr bool kHasMma = false;
#endif

#if defined(__CUDACC__) || defined(__HIPCC__)

// Says of a pointer from shared memory that it leads to global memory, which loads need not find
// out.
template <typename T>
__device__ __forceinline__ T* in_global(T* pointer) {
#if MMVMAMBA_PTX
  __builtin_assume(__isGlobal(pointer));
#endif
  return pointer;
}

// __syncthreads for warps that arrive from different places of the code. __syncthreads itself is
// the aligned form of the instruction, which requires all threads of a block to execute the same
// one.
__device__ __forceinline__ void sync_block() {
#if MMVMAMBA_PTX
  asm volatile("barrier.sync 0;" ::: "memory");
#else
  __syncthreads();
#endif
}

// Makes what 32 lanes have written to shared memory visible to them.
__device__ __forceinline__ void sync_lanes() {
#if defined(__HIPCC__)  // lanes of a warp, of 32 or 64, run in lockstep
  __builtin_amdgcn_fence(__ATOMIC_ACQ_REL, "wavefront");
  __builtin_amdgcn_wave_barrier();
#else
  __syncwarp();
#endif
}

// The value of the lane `distance` before or after this one in its group of `width` lanes; the
// lane's own where there is none.
template <typename T>
__device__ __forceinline__ T shuffle_up(T value, int distance, int width) {
#if defined(__HIPCC__)
  return __shfl_up(value, distance, width);
#else
  return __shfl_up_sync(0xffffffff, value, distance, width);
#endif
}
template <typename T>
__device__ __forceinline__ T shuffle_down(T value, int distance, int width) {
#if defined(__HIPCC__)
  return __shfl_down(value, distance, width);
#else
  return __shfl_down_sync(0xffffffff, value, distance, width);
#endif
}
// The value of the lane whose number differs in `bits`, of 32 lanes.
template <typename T>
__device__ __forceinline__ T shuffle_xor(T value, int bits) {
#if defined(__HIPCC__)
  return __shfl_xor(value, bits, 32);
#else
  return __shfl_xor_sync(0xffffffff, value, bits);
#endif
}

// The largest of numbers that are not negative, of 32 lanes.
__device__ __forceinline__ float max_of_lanes(float value) {
#if MMVMAMBA_PTX && __CUDA_ARCH__ >= 800
  return __uint_as_float(__reduce_max_sync(0xffffffff, __float_as_uint(value)));
#else
  for (int bits = 1; bits < 32; bits *= 2) value = fmaxf(value, shuffle_xor(value, bits));
  return value;
#endif
}

#endif

#if MMVMAMBA_PTX

// Four 8 x 8 matrices of 16 bits from shared memory, row l % 8 of matrix l / 8 at lane l's pointer:
// a lane gets elements 2 (l % 4) and the next of row l / 4 of each.
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], const void* row) {
  const uint32_t at = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(at)
               : "memory");
}

// The same of transposed matrices: a lane gets elements l / 4 of rows 2 (l % 4) and the next.
__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row) {
  const uint32_t at = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(at)
               : "memory");
}

// Transposes an 8 x 8 matrix of 16 bits, of which lane l has elements 2 (l % 4) and the next of row
// l / 4.
__device__ __forceinline__ uint32_t movmatrix_trans(uint32_t value) {
  uint32_t out;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(out) : "r"(value));
  return out;
}

// d (16 x 8) = a (16 x 16) b (16 x 8) + c.
template <typename half_t>
__device__ __forceinline__ void mma_16x8x16(float (&d)[4], const uint32_t (&a)[4],
                                            const uint32_t (&b)[2], const float (&c)[4]) {
#if __CUDA_ARCH__ >= 800
  if constexpr (std::is_same_v<half_t, torch::headeronly::Half>) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%10, %11, %12, %13};"
        : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "f"(c[0]), "f"(c[1]),
          "f"(c[2]), "f"(c[3]));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%10, %11, %12, %13};"
        : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "f"(c[0]), "f"(c[1]),
          "f"(c[2]), "f"(c[3]));
  }
#else
  asm volatile(
      "{.reg .f32 x, y, z, w;\n"
      "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {x, y, z, w}, {%4, %5}, {%8}, "
      "{%10, %11, %12, %13};\n"
      "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%6, %7}, {%9}, "
      "{x, y, z, w};}"
      : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "f"(c[0]), "f"(c[1]),
        "f"(c[2]), "f"(c[3]));
#endif
}

// d (16 x 8) = a (16 x 8) b (8 x 8) + c.
template <typename half_t>
__device__ __forceinline__ void mma_16x8x8(float (&d)[4], const uint32_t (&a)[2], uint32_t b,
                                           const float (&c)[4]) {
  if constexpr (std::is_same_v<half_t, torch::headeronly::Half>) {
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, "
        "{%7, %8, %9, %10};"
        : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(b), "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, "
        "{%7, %8, %9, %10};"
        : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(b), "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]));
  }
}

#elif defined(__CUDACC__) || defined(__HIPCC__)

// Never called.
__device__ inline void ldmatrix_x4(uint32_t (&)[4], const void*) {}
__device__ inline void ldmatrix_x4_trans(uint32_t (&)[4], const void*) {}
__device__ inline uint32_t movmatrix_trans(uint32_t value) { return value; }
template <typename half_t>
__device__ void mma_16x8x16(float (&)[4], const uint32_t (&)[4], const uint32_t (&)[2],
                            const float (&)[4]) {}
template <typename half_t>
__device__ void mma_16x8x8(float (&)[4], const uint32_t (&)[2], uint32_t, const float (&)[4]) {}

#endif

}  // namespace mmvmamba
