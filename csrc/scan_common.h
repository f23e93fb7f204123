// Constants and plain structures that all kernels share. No torch header: the kernels take raw
// pointers and sizes, so that the same code can stand behind any face.
#pragma once

#include <cstdint>

namespace mmvmamba {

// Positions between two saved states; the backward recomputes the states inside a chunk. Python's
// `mmvmamba.ops._registrations.CHUNK` is the same number.
constexpr int64_t kChunk = 64;

// The order in which a direction walks a map, see `mmvmamba/ops/cross_scan.py`.
enum Order : int64_t { kRow = 0, kColumn = 1, kRowReversed = 2, kColumnReversed = 3 };

// A walk over the positions of a map in one order, from step `l` on; positions are in image order.
class Walk {
 public:
  Walk(int64_t order, int64_t l, int64_t height, int64_t width) {
    const bool reversed = order == kRowReversed || order == kColumnReversed;
    const bool columns = order == kColumn || order == kColumnReversed;
    // A line is what is walked without a jump: a row, or a column.
    length_ = columns ? height : width;
    step_ = columns ? width : 1;
    const int64_t forward = reversed ? height * width - 1 - l : l;
    const int64_t line = forward / length_, place = forward % length_;
    position_ = columns ? place * width + line : forward;
    left_ = reversed ? place : length_ - 1 - place;
    jump_ = columns ? 1 - (height - 1) * width : 1;
    if (reversed) {
      step_ = -step_;
      jump_ = -jump_;
    }
  }
  int64_t position() const { return position_; }
  void advance() {
    if (left_-- > 0) {
      position_ += step_;
    } else {
      position_ += jump_;
      left_ = length_ - 1;
    }
  }

 private:
  int64_t length_, step_, jump_, left_, position_;
};

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace mmvmamba
