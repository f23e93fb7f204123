// The CPU kernels for a dtype of torch, and the name of their instruction set as an op.
#include "dispatch_torch.h"

namespace mmvmamba {
namespace {

Io io_of(ScalarType type) {
  switch (type) {
    case ScalarType::Float:
      return Io::kFloat;
    case ScalarType::BFloat16:
      return Io::kBFloat16;
    case ScalarType::Double:
      return Io::kDouble;
    default:
      STD_TORCH_CHECK(false, "the CPU kernels take float32, bfloat16 or float64, not ",
                      torch::headeronly::toString(type));
  }
}

std::string cpu_isa_name() { return cpu_isa(); }

}  // namespace

Kernels best_kernels(ScalarType type) { return best_kernels(io_of(type)); }

STABLE_TORCH_LIBRARY_FRAGMENT(mmvmamba, m) {
  m.def("cpu_isa() -> str");
  m.def("cpu_has_fast_bfloat16() -> bool");
}

STABLE_TORCH_LIBRARY_IMPL(mmvmamba, CompositeExplicitAutograd, m) {
  m.impl("cpu_isa", TORCH_BOX(&cpu_isa_name));
  m.impl("cpu_has_fast_bfloat16", TORCH_BOX(&has_fast_bfloat16));
}

}  // namespace mmvmamba
