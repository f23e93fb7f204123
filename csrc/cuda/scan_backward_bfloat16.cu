#include "scan_backward.cuh"

namespace mmvmamba {
MMVMAMBA_BACKWARD(c10::BFloat16);
}  // namespace mmvmamba
