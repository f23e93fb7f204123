#include "scan_backward.cuh"

namespace mmvmamba {
MMVMAMBA_BACKWARD(torch::headeronly::Half);
}  // namespace mmvmamba
