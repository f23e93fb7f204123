// Gradients as sums over parts of the work.
#include "partial_sums.h"

#include <torch/headeronly/util/BFloat16.h>

#include <algorithm>

namespace mmvmamba {
namespace {

Tensor allocate_parts(const Tensor& total, int64_t count) {
  const ScalarType acc = acc_type(total.scalar_type());
  if (count == 1 && total.scalar_type() == acc) return total;
  return empty_on(total, prepend(count, total.sizes()), acc);
}

// Adds the parts [count][n] in their order into out [n], which may be of a narrower type.
template <typename acc_t, typename out_t>
void add_up(const void* from, int64_t count, int64_t n, void* to) {
  constexpr int64_t kGrain = 16384;
  const acc_t* parts = static_cast<const acc_t*>(from);
  out_t* out = static_cast<out_t*>(to);
  torch::stable::parallel_for(0, n, kGrain, [&](int64_t begin, int64_t end) {
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

PartialSums::PartialSums(const Tensor& like, int64_t count, Shape sizes, ScalarType type)
    : total(empty_on(like, sizes, type)), parts(allocate_parts(total, count)), count_(count) {}

Tensor PartialSums::sum() const {
  if (parts.get() == total.get()) return total;
  const void* from = parts.const_data_ptr();
  void* to = total.mutable_data_ptr();
  switch (total.scalar_type()) {
    case ScalarType::Double:
      add_up<double, double>(from, count_, total.numel(), to);
      break;
    case ScalarType::BFloat16:
      add_up<float, torch::headeronly::BFloat16>(from, count_, total.numel(), to);
      break;
    default:
      add_up<float, float>(from, count_, total.numel(), to);
  }
  return total;
}

}  // namespace mmvmamba
