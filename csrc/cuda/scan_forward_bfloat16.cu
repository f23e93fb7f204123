#include "scan_forward.cuh"

namespace mmvmamba {
MMVMAMBA_FORWARD(torch::headeronly::BFloat16);
}  // namespace mmvmamba
