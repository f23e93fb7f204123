// The CPU kernels for a dtype of torch.
#pragma once

#include "../scan_tensors.h"
#include "dispatch.h"

namespace mmvmamba {

// The kernels of the widest instruction set of this processor. RuntimeError for a dtype that they
// do not take.
Kernels best_kernels(ScalarType type);

}  // namespace mmvmamba
