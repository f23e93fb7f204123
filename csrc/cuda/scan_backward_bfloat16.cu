#include "scan_backward.cuh"

namespace mmvmamba {
MMVMAMBA_BACKWARD(torch::headeronly::BFloat16);
}  // namespace mmvmamba
