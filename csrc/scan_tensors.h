// Tensors for the host code of all devices, on PyTorch's stable ABI: the types and the few
// operations beyond those of torch/csrc/stable/ops.h.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

namespace mmvmamba {

using torch::headeronly::DeviceType;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;
using Sizes = std::vector<int64_t>;

// The dtype of states and sums for an I/O dtype.
inline ScalarType acc_type(ScalarType type) {
  return type == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline Sizes sizes_of(const Tensor& value) { return value.sizes().vec(); }

// These sizes with one more dimension in front.
inline Sizes prepend(int64_t size, Sizes sizes) {
  sizes.insert(sizes.begin(), size);
  return sizes;
}

inline std::string shape_text(const Sizes& sizes) {
  std::string text;
  for (int64_t size : sizes) text += (text.empty() ? "" : ", ") + std::to_string(size);
  return "(" + text + ")";
}

// An uninitialized contiguous tensor on the device of another. The stable ABI reports a failure
// without its cause, which is nearly always a lack of memory: callers look for those words.
inline Tensor empty_on(const Tensor& like, const Sizes& sizes, ScalarType type) {
  try {
    return torch::stable::empty(sizes, type, std::nullopt, like.device());
  } catch (const std::runtime_error&) {
    const char* cause =
        like.is_cuda() ? "CUDA out of memory, or an earlier CUDA error" : "out of memory";
    throw std::runtime_error(std::string(cause) +
                             ": mmvmamba could not allocate a tensor of shape " +
                             shape_text(sizes) + " and dtype " + torch::headeronly::toString(type) +
                             "; PyTorch has logged its own message");
  }
}

inline Tensor zeros_on(const Tensor& like, const Sizes& sizes, ScalarType type) {
  Tensor out = empty_on(like, sizes, type);
  torch::stable::zero_(out);
  return out;
}

inline Tensor zeros_as(const Tensor& value) {
  return zeros_on(value, sizes_of(value), value.scalar_type());
}

inline OptionalTensor contiguous(const OptionalTensor& value) {
  return value.has_value() ? OptionalTensor(torch::stable::contiguous(*value)) : value;
}

inline const void* data_or_null(const OptionalTensor& value) {
  return value.has_value() ? value->const_data_ptr() : nullptr;
}

// A contiguous copy, even of a contiguous tensor: the outputs of an op must not share memory.
inline Tensor contiguous_copy(const Tensor& value) {
  Tensor out = empty_on(value, sizes_of(value), value.scalar_type());
  torch::stable::copy_(out, value);
  return out;
}

}  // namespace mmvmamba
