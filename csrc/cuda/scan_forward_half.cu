#include "scan_forward.cuh"

namespace mmvmamba {
MMVMAMBA_FORWARD(c10::Half);
}  // namespace mmvmamba
