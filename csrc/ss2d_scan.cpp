// The schemas of the fused core of SS2D. Shapes and meaning: mmvmamba/ops/ss2d_scan.py.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY_FRAGMENT(mmvmamba, m) {
  m.def(
      "ss2d_scan(Tensor x, Tensor proj, Tensor dt_weight, Tensor dt_bias, Tensor A, Tensor D, "
      "int[] orders, ScalarType out_dtype, bool save_states) -> (Tensor y, Tensor states)");
  m.def(
      "ss2d_scan_backward(Tensor grad_y, Tensor x, Tensor proj, Tensor dt_weight, Tensor dt_bias, "
      "Tensor A, Tensor D, Tensor states, int[] orders) -> (Tensor grad_x, Tensor grad_proj, "
      "Tensor grad_dt_weight, Tensor grad_dt_bias, Tensor grad_A, Tensor grad_D)");
}
