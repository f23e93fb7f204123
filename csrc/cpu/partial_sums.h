// Gradients as sums over parts of the work.
#pragma once

#include "../scan_tensors.h"

namespace mmvmamba {

// A gradient, and one part of it for each piece of the work in the sums' dtype. A single part of
// the gradient's own dtype is the gradient itself.
struct PartialSums {
  Tensor total;
  Tensor parts;  // [count], then as `total`

  // Allocates both on the device of another tensor.
  PartialSums(const Tensor& like, int64_t count, Shape sizes, ScalarType type);

  void* data() const { return parts.mutable_data_ptr(); }

  // Adds up the parts in a fixed order, whatever the threads, and returns the gradient.
  Tensor sum() const;

 private:
  int64_t count_;
};

}  // namespace mmvmamba
