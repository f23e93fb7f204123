#include "scan_backward.cuh"

namespace mmvmamba {
MMVMAMBA_BACKWARD(double);
}  // namespace mmvmamba
