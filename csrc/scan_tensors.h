// Tensors for the host code of all devices, on PyTorch's stable ABI: the types and the few
// operations beyond those of torch/csrc/stable/ops.h.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

namespace mmvmamba {

using torch::headeronly::DeviceType;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;
using Shape = torch::headeronly::IntHeaderOnlyArrayRef;
using Sizes = std::vector<int64_t>;

// The dtype of states and sums for an I/O dtype.
inline ScalarType acc_type(ScalarType type) {
  return type == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// A shape with one more dimension in front.
inline Sizes prepend(int64_t size, Shape shape) {
  Sizes sizes = shape.vec();
  sizes.insert(sizes.begin(), size);
  return sizes;
}

inline std::string shape_text(Shape sizes) {
  std::string text;
  for (int64_t size : sizes) text += (text.empty() ? "" : ", ") + std::to_string(size);
  return "(" + text + ")";
}

// An uninitialized contiguous tensor on the device of another. PyTorch's op costs as much as a scan
// of a small map, its C function does not. A failure comes without its cause, which is nearly
// always a lack of memory. Callers such as mmdet's AvoidOOM look for "CUDA out of memory. ".
inline Tensor empty_on(const Tensor& like, Shape sizes, ScalarType type) {
  Sizes strides(sizes.size());
  int64_t numel = 1;
  for (size_t i = sizes.size(); i-- > 0; numel *= std::max<int64_t>(sizes[i], 1)) {
    strides[i] = numel;
  }
  int32_t device_type = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  AtenTensorHandle handle = nullptr;
  const auto dtype = torch::stable::detail::to<int32_t>(torch::stable::detail::from(type));
  const auto status =
      aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(),
                               dtype, device_type, like.get_device_index(), &handle);
  STD_TORCH_CHECK(status == TORCH_SUCCESS,
                  like.is_cuda() ? "CUDA out of memory. " : "Out of memory. ",
                  "mmvmamba could not allocate a tensor of shape ", shape_text(sizes),
                  " and dtype ", torch::headeronly::toString(type),
                  ". PyTorch has logged its own message, which may name an earlier error");
  return Tensor(handle);
}

inline Tensor zeros_on(const Tensor& like, Shape sizes, ScalarType type) {
  Tensor out = empty_on(like, sizes, type);
  torch::stable::zero_(out);
  return out;
}

inline Tensor zeros_as(const Tensor& value) {
  return zeros_on(value, value.sizes(), value.scalar_type());
}

// A contiguous copy, even of a contiguous tensor: the outputs of an op must not share memory.
inline Tensor contiguous_copy(const Tensor& value, ScalarType type) {
  Tensor out = empty_on(value, value.sizes(), type);
  torch::stable::copy_(out, value);
  return out;
}
inline Tensor contiguous_copy(const Tensor& value) {
  return contiguous_copy(value, value.scalar_type());
}

// The tensor itself if it is contiguous, else a copy.
inline Tensor as_contiguous(const Tensor& value) {
  return value.is_contiguous() ? value : contiguous_copy(value);
}
inline OptionalTensor as_contiguous(const OptionalTensor& value) {
  return value.has_value() ? OptionalTensor(as_contiguous(*value)) : value;
}

// The tensor itself if it has the dtype, else a contiguous copy.
inline Tensor as_type(const Tensor& value, ScalarType type) {
  return value.scalar_type() == type ? value : contiguous_copy(value, type);
}

inline const void* data_or_null(const OptionalTensor& value) {
  return value.has_value() ? value->const_data_ptr() : nullptr;
}

}  // namespace mmvmamba
