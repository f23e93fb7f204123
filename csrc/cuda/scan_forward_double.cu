#include "scan_forward.cuh"

namespace mmvmamba {
MMVMAMBA_FORWARD(double);
}  // namespace mmvmamba
