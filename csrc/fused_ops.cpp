// The schemas of the ops between the matrix products of a block. Meaning:
// mmvmamba/ops/fused_ops.py.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY_FRAGMENT(mmvmamba, m) {
  m.def("layer_norm(Tensor x, Tensor weight, Tensor bias, float eps) -> Tensor");
  m.def(
      "add_layer_norm(Tensor(a!) sum, Tensor x, Tensor y, Tensor shift, Tensor weight, Tensor "
      "bias, "
      "float eps) -> Tensor");
  m.def("bias_gelu_(Tensor(a!) x, Tensor bias) -> ()");
  m.def("depthwise_silu(Tensor x, Tensor weight, Tensor? bias) -> Tensor");
}
