// Stands in for csrc/cuda/ptx.h: the same functions, each instruction in C++. Fragments of matrices
// are laid out as the PTX ISA says.
#pragma once

#include <cuda_runtime.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <type_traits>

namespace mmvmamba {

inline float exp2_approx(float x) { return ::exp2f(x); }

// Two values of 16 bits in a word, the first in the lower half.
template <class half_t>
uint32_t pack(float low, float high) {
  return uint32_t{half_t(low).x} | uint32_t{half_t(high).x} << 16;
}
#ifndef CUDA_EMULATOR_MMA
#define CUDA_EMULATOR_MMA 1
#endif
template <class io_t>
constexpr bool kHasMma = CUDA_EMULATOR_MMA && sizeof(io_t) == 2;
inline float rcp_approx(float x) { return 1.0f / x; }
inline int64_t multiply_wide(int32_t a, int32_t b) { return static_cast<int64_t>(a) * b; }
inline void sync_block() { __syncthreads(); }
inline void sync_lanes(CUDA_EMULATOR_SITE) { __syncwarp(0xffffffff, file, line); }
template <class T>
T shuffle_up(T value, int distance, int width, CUDA_EMULATOR_SITE) {
  return __shfl_up_sync(0xffffffff, value, distance, width, file, line);
}
template <class T>
T shuffle_down(T value, int distance, int width, CUDA_EMULATOR_SITE) {
  return __shfl_down_sync(0xffffffff, value, distance, width, file, line);
}
template <class T>
T shuffle_xor(T value, int bits, CUDA_EMULATOR_SITE) {
  return __shfl_xor_sync(0xffffffff, value, bits, 32, file, line);
}

template <class T>
T* in_global(T* pointer) {
  return pointer;
}

inline float max_of_lanes(float value, CUDA_EMULATOR_SITE) {
  for (int bits = 1; bits < 32; bits *= 2) {
    const float other = shuffle_xor(value, bits, file, line);
    value = other > value ? other : value;
  }
  return value;
}

namespace emulated {

// The addresses of the rows that a lane reads its words of `kCount` matrices from: one row each, or
// two for the words of transposed ones.
template <int kCount>
cuda_emulator::Payload exchange_rows(const void* row, bool trans, cuda_emulator::Site site) {
  if (cuda_emulator::lane_id() < 8 * kCount) {
    if (reinterpret_cast<uintptr_t>(row) % 16 != 0) {
      cuda_emulator::fail("ldmatrix at %s:%d: a row is not aligned to 16 bytes", site.file,
                          site.line);
    }
    if (!cuda_emulator::in_shared(row, 16)) {
      cuda_emulator::fail("ldmatrix at %s:%d: a row is not in shared memory", site.file, site.line);
    }
  }
  cuda_emulator::Payload payload;
  payload.row[0] = static_cast<const char*>(row);
  cuda_emulator::warp_operation(
      trans ? cuda_emulator::WarpOp::kRowsTrans : cuda_emulator::WarpOp::kRows, 0xffffffff, payload,
      site);
  return payload;
}

template <int kCount>
void ldmatrix(uint32_t* r, const void* row, bool trans, cuda_emulator::Site site) {
  const auto rows = exchange_rows<kCount>(row, trans, site);
  const int lane = cuda_emulator::lane_id();
  for (int m = 0; m < kCount; ++m) {
    if (trans) {
      uint16_t half[2];
      for (int i = 0; i < 2; ++i) std::memcpy(&half[i], rows.row[2 * m + i] + lane / 4 * 2, 2);
      r[m] = half[0] | static_cast<uint32_t>(half[1]) << 16;
    } else {
      std::memcpy(&r[m], rows.row[m] + lane % 4 * 4, 4);
    }
  }
}

// The destination holds anything until the copy has been waited for.
inline void issue_copy(void* shared, const void* global, int bytes, cuda_emulator::Site site) {
  if ((reinterpret_cast<uintptr_t>(shared) | reinterpret_cast<uintptr_t>(global)) % bytes != 0) {
    cuda_emulator::fail("cp.async at %s:%d: an address is not aligned to %d bytes", site.file,
                        site.line, bytes);
  }
  if (!cuda_emulator::in_shared(shared, bytes)) {
    cuda_emulator::fail("cp.async at %s:%d: the destination is not in shared memory", site.file,
                        site.line);
  }
  if (cuda_emulator::in_shared(global, 1)) {
    cuda_emulator::fail("cp.async at %s:%d: the source is in shared memory", site.file, site.line);
  }
  std::memset(shared, cuda_emulator::poison(), bytes);
  cuda_emulator::issue_copy({shared, global, bytes});
}

}  // namespace emulated

inline void ldmatrix_x4(uint32_t (&r)[4], const void* shared_row, CUDA_EMULATOR_SITE) {
  emulated::ldmatrix<4>(r, shared_row, false, {file, line});
}
inline void ldmatrix_x2(uint32_t (&r)[2], const void* shared_row, CUDA_EMULATOR_SITE) {
  emulated::ldmatrix<2>(r, shared_row, false, {file, line});
}
inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void* shared_row, CUDA_EMULATOR_SITE) {
  emulated::ldmatrix<4>(r, shared_row, true, {file, line});
}
inline void ldmatrix_x2_trans(uint32_t (&r)[2], const void* shared_row, CUDA_EMULATOR_SITE) {
  emulated::ldmatrix<2>(r, shared_row, true, {file, line});
}

inline uint32_t movmatrix_trans(uint32_t value, CUDA_EMULATOR_SITE) {
  cuda_emulator::Payload payload;
  payload.word[0] = value;
  cuda_emulator::warp_operation(cuda_emulator::WarpOp::kMove, 0xffffffff, payload, {file, line});
  return payload.word[0];
}

// d = a b + c, of 16 x 16 and 16 x 8 elements.
template <class half_t>
void mma_16x8x16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const float (&c)[4],
                 CUDA_EMULATOR_SITE) {
  constexpr bool kHalf = std::is_same<half_t, torch::headeronly::Half>::value;
  static_assert(kHalf || std::is_same<half_t, torch::headeronly::BFloat16>::value, "");
  cuda_emulator::Payload payload;
  std::memcpy(payload.word, a, sizeof(a));
  std::memcpy(payload.word + 4, b, sizeof(b));
  std::memcpy(payload.word + 6, c, sizeof(c));
  cuda_emulator::warp_operation(
      kHalf ? cuda_emulator::WarpOp::kMmaHalf : cuda_emulator::WarpOp::kMmaBFloat16, 0xffffffff,
      payload, {file, line});
  std::memcpy(d, payload.word, sizeof(d));
}

// d = a b + c, of 16 x 8 and 8 x 8 elements.
template <class half_t>
void mma_16x8x8(float (&d)[4], const uint32_t (&a)[2], uint32_t b, const float (&c)[4],
                CUDA_EMULATOR_SITE) {
  mma_16x8x16<half_t>(d, {a[0], a[1], 0, 0}, {b, 0}, c, file, line);
}

inline void cp_async_16(void* shared, const void* global, CUDA_EMULATOR_SITE) {
  emulated::issue_copy(shared, global, 16, {file, line});
}
inline void cp_async_8(void* shared, const void* global, CUDA_EMULATOR_SITE) {
  emulated::issue_copy(shared, global, 8, {file, line});
}
inline void cp_async_4(void* shared, const void* global, CUDA_EMULATOR_SITE) {
  emulated::issue_copy(shared, global, 4, {file, line});
}
inline void cp_async_commit() { cuda_emulator::commit_copies(); }
// Waits until at most `n` of the thread's groups are in flight.
template <int n>
void cp_async_wait() {
  cuda_emulator::Copy copy;
  while (cuda_emulator::take_copy(n, copy)) std::memcpy(copy.to, copy.from, copy.bytes);
}

}  // namespace mmvmamba
