// What the torch faces of the CPU kernels share.
#include "torch_common.h"

#include <torch/library.h>

#include <algorithm>
#include <string>

namespace mmvmamba {

Io io_of(c10::ScalarType type) {
  switch (type) {
    case c10::kFloat:
      return Io::kFloat;
    case c10::kBFloat16:
      return Io::kBFloat16;
    case c10::kDouble:
      return Io::kDouble;
    default:
      TORCH_CHECK_TYPE(false, "the CPU kernels take float32, bfloat16 or float64, not ", type);
  }
}

namespace {

// Adds the parts [parts][n] in their order into out [n], which may be of a narrower type.
template <typename acc_t, typename out_t>
void sum_parts(const acc_t* parts, int64_t count, int64_t n, out_t* out) {
  constexpr int64_t kGrain = 16384;
  at::parallel_for(0, n, kGrain, [&](int64_t begin, int64_t end) {
    constexpr int64_t kTile = 256;
    acc_t tile[kTile];
    for (int64_t i = begin; i < end; i += kTile) {
      const int64_t size = std::min(kTile, end - i);
      std::copy_n(parts + i, size, tile);
      for (int64_t p = 1; p < count; ++p) {
        const acc_t* part = parts + p * n + i;
        for (int64_t j = 0; j < size; ++j) tile[j] += part[j];
      }
      for (int64_t j = 0; j < size; ++j) out[i + j] = static_cast<out_t>(tile[j]);
    }
  });
}

}  // namespace

at::Tensor sum_first(const at::Tensor& parts, at::ScalarType type) {
  // The same memory, but to autograd no view, which callers could not change in place.
  if (parts.size(0) == 1 && parts.scalar_type() == type) {
    return at::_unsafe_view(parts, parts.sizes().slice(1));
  }
  at::Tensor out = at::empty(parts.sizes().slice(1), parts.options().dtype(type));
  if (parts.scalar_type() == at::kDouble) {
    sum_parts(parts.const_data_ptr<double>(), parts.size(0), out.numel(),
              out.mutable_data_ptr<double>());
  } else if (type == at::kBFloat16) {
    sum_parts(parts.const_data_ptr<float>(), parts.size(0), out.numel(),
              out.mutable_data_ptr<at::BFloat16>());
  } else {
    sum_parts(parts.const_data_ptr<float>(), parts.size(0), out.numel(),
              out.mutable_data_ptr<float>());
  }
  return out;
}

TORCH_LIBRARY_FRAGMENT(mmvmamba, m) {
  m.def("cpu_isa() -> str", [] { return std::string(best_isa()); });
}

}  // namespace mmvmamba
