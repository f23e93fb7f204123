// Constants and plain structures that all kernels share.
// No torch header: the kernels take raw pointers and sizes.
#pragma once

#include <cstdint>

#if defined(__CUDACC__) || defined(__HIPCC__)
#define MMVMAMBA_HD __host__ __device__ __forceinline__
#else
#define MMVMAMBA_HD inline
#endif

namespace mmvmamba {

// Positions between two states that the CPU kernels save; the backward recomputes the states inside
// of a chunk. Python's `mmvmamba.ops.extension.CHUNK` has the same number.
constexpr int64_t kChunk = 64;

// The order in which a direction walks a map, see `mmvmamba/ops/cross_scan.py`.
enum Order : int64_t { kRow = 0, kColumn = 1, kRowReversed = 2, kColumnReversed = 3 };

MMVMAMBA_HD bool is_reversed(int64_t order) {
  return order == kRowReversed || order == kColumnReversed;
}
MMVMAMBA_HD bool along_columns(int64_t order) {
  return order == kColumn || order == kColumnReversed;
}

// A walk over the positions of a map in one order, from step `l` on; positions are in image order.
// Int is what positions are counted in.
template <typename Int>
class WalkOf {
 public:
  MMVMAMBA_HD WalkOf(int64_t order, Int l, Int height, Int width) {
    const bool reversed = is_reversed(order), columns = along_columns(order);
    // A line is what is walked without a jump: a row, or a column.
    length_ = columns ? height : width;
    step_ = columns ? width : 1;
    const Int forward = reversed ? height * width - 1 - l : l;
    const Int line = forward / length_, place = forward % length_;
    position_ = columns ? place * width + line : forward;
    left_ = reversed ? place : length_ - 1 - place;
    jump_ = columns ? 1 - (height - 1) * width : 1;
    if (reversed) {
      step_ = -step_;
      jump_ = -jump_;
    }
  }
  MMVMAMBA_HD Int position() const { return position_; }
  MMVMAMBA_HD void advance() {
    if (left_-- > 0) {
      position_ += step_;
    } else {
      position_ += jump_;
      left_ = length_ - 1;
    }
  }

 private:
  Int length_, step_, jump_, left_, position_;
};
using Walk = WalkOf<int64_t>;

MMVMAMBA_HD int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace mmvmamba
