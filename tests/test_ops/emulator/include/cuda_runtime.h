// Stands in for CUDA's header: the language of kernels, as far as the emulator has it.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "../emulator.h"

#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))

#define CUDA_EMULATOR_VECTOR2(T, name, align) \
  struct alignas(align) name {                \
    T x, y;                                   \
  };                                          \
  inline name make_##name(T x, T y) { return {x, y}; }
#define CUDA_EMULATOR_VECTOR4(T, name, align) \
  struct alignas(align) name {                \
    T x, y, z, w;                             \
  };                                          \
  inline name make_##name(T x, T y, T z, T w) { return {x, y, z, w}; }
CUDA_EMULATOR_VECTOR2(float, float2, 8)
CUDA_EMULATOR_VECTOR2(int, int2, 8)
CUDA_EMULATOR_VECTOR2(unsigned, uint2, 8)
CUDA_EMULATOR_VECTOR2(double, double2, 16)
CUDA_EMULATOR_VECTOR2(long long, longlong2, 16)
CUDA_EMULATOR_VECTOR4(float, float4, 16)
CUDA_EMULATOR_VECTOR4(int, int4, 16)
CUDA_EMULATOR_VECTOR4(unsigned, uint4, 16)

// ---- Blocks and warps ---------------------------------------------------------------------------

#define CUDA_EMULATOR_SITE const char *file = __builtin_FILE(), int line = __builtin_LINE()

inline void __syncthreads(CUDA_EMULATOR_SITE) { cuda_emulator::barrier({file, line}); }

inline void __syncwarp(unsigned mask = 0xffffffff, CUDA_EMULATOR_SITE) {
  cuda_emulator::Payload payload;
  cuda_emulator::warp_operation(cuda_emulator::WarpOp::kSync, mask, payload, {file, line});
}

namespace cuda_emulator {

template <class T>
T shuffle(unsigned mask, T value, int source, Site site) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "shuffles take 4 or 8 bytes");
  Payload payload;
  std::memcpy(payload.word, &value, sizeof(T));
  payload.word[2] = static_cast<uint32_t>(source);
  warp_operation(WarpOp::kShuffle, mask, payload, site);
  std::memcpy(&value, payload.word, sizeof(T));
  return value;
}

inline unsigned vote(unsigned mask, bool predicate, Site site) {
  Payload payload;
  payload.word[0] = predicate;
  warp_operation(WarpOp::kVote, mask, payload, site);
  return payload.word[0];
}

}  // namespace cuda_emulator

// A lane whose source lies outside of its `width` lanes keeps its value.
template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, CUDA_EMULATOR_SITE) {
  const int begin = cuda_emulator::lane_id() & ~(width - 1);
  return cuda_emulator::shuffle(mask, value, begin | (source & (width - 1)), {file, line});
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, CUDA_EMULATOR_SITE) {
  const int lane = cuda_emulator::lane_id(), source = lane - static_cast<int>(delta);
  const bool inside = source >= (lane & ~(width - 1));
  return cuda_emulator::shuffle(mask, value, inside ? source : lane, {file, line});
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, CUDA_EMULATOR_SITE) {
  const int lane = cuda_emulator::lane_id(), source = lane + static_cast<int>(delta);
  const bool inside = source <= (lane | (width - 1));
  return cuda_emulator::shuffle(mask, value, inside ? source : lane, {file, line});
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, CUDA_EMULATOR_SITE) {
  const int lane = cuda_emulator::lane_id(), source = lane ^ bits;
  const bool inside = source <= (lane | (width - 1));
  return cuda_emulator::shuffle(mask, value, inside ? source : lane, {file, line});
}

inline unsigned __ballot_sync(unsigned mask, int predicate, CUDA_EMULATOR_SITE) {
  return cuda_emulator::vote(mask, predicate != 0, {file, line});
}
inline int __any_sync(unsigned mask, int predicate, CUDA_EMULATOR_SITE) {
  return cuda_emulator::vote(mask, predicate != 0, {file, line}) != 0;
}
inline int __all_sync(unsigned mask, int predicate, CUDA_EMULATOR_SITE) {
  return cuda_emulator::vote(mask, predicate != 0, {file, line}) == mask;
}
inline unsigned __activemask() { return cuda_emulator::live_lanes(); }

[[noreturn]] inline void __trap(CUDA_EMULATOR_SITE) {
  cuda_emulator::fail("__trap() at %s:%d", file, line);
}

// ---- Arithmetic ---------------------------------------------------------------------------------

template <class T>
T __ldg(const T* from) {
  return *from;
}

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>(static_cast<uint64_t>(a) * b >> 32);
}

namespace cuda_emulator {
template <class To, class From>
To bits(From from) {
  static_assert(sizeof(To) == sizeof(From), "");
  To to;
  std::memcpy(&to, &from, sizeof(To));
  return to;
}
}  // namespace cuda_emulator

inline int __float_as_int(float x) { return cuda_emulator::bits<int>(x); }
inline unsigned __float_as_uint(float x) { return cuda_emulator::bits<unsigned>(x); }
inline float __int_as_float(int x) { return cuda_emulator::bits<float>(x); }
inline float __uint_as_float(unsigned x) { return cuda_emulator::bits<float>(x); }
inline long long __double_as_longlong(double x) { return cuda_emulator::bits<long long>(x); }
inline double __longlong_as_double(long long x) { return cuda_emulator::bits<double>(x); }

inline float __fmaf_rn(float a, float b, float c) { return ::fmaf(a, b, c); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fdividef(float a, float b) { return a / b; }
inline float __expf(float x) { return ::expf(x); }
inline float __exp2f(float x) { return ::exp2f(x); }
inline float __logf(float x) { return ::logf(x); }
inline float rsqrtf(float x) { return 1.0f / ::sqrtf(x); }

#define CUDA_EMULATOR_MIN_MAX(T)                   \
  inline T min(T a, T b) { return b < a ? b : a; } \
  inline T max(T a, T b) { return a < b ? b : a; }
CUDA_EMULATOR_MIN_MAX(int)
CUDA_EMULATOR_MIN_MAX(unsigned)
CUDA_EMULATOR_MIN_MAX(long)
CUDA_EMULATOR_MIN_MAX(unsigned long)
CUDA_EMULATOR_MIN_MAX(long long)
CUDA_EMULATOR_MIN_MAX(unsigned long long)
#undef CUDA_EMULATOR_MIN_MAX
inline float min(float a, float b) { return ::fminf(a, b); }
inline float max(float a, float b) { return ::fmaxf(a, b); }
inline double min(double a, double b) { return ::fmin(a, b); }
inline double max(double a, double b) { return ::fmax(a, b); }
