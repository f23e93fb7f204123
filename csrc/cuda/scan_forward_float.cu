#include "scan_forward.cuh"

namespace mmvmamba {
MMVMAMBA_FORWARD(float);
}  // namespace mmvmamba
