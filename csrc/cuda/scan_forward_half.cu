#include "scan_forward.cuh"

namespace mmvmamba {
MMVMAMBA_FORWARD(torch::headeronly::Half);
}  // namespace mmvmamba
