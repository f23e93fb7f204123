// Choice of the build that this processor runs.
#pragma once

#include <c10/core/ScalarType.h>
#include <c10/util/Exception.h>

#include "ss2d_scan.h"

namespace mmvmamba {

// The kernels of the widest instruction set that this processor has.
SS2DKernels ss2d_kernels(Io io);

inline Io io_of(c10::ScalarType type) {
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

inline c10::ScalarType acc_type(c10::ScalarType type) {
  return type == c10::kDouble ? c10::kDouble : c10::kFloat;
}

}  // namespace mmvmamba
