#include "scan_backward.cuh"

namespace mmvmamba {
MMVMAMBA_BACKWARD(float);
}  // namespace mmvmamba
