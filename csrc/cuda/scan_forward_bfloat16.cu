#include "scan_forward.cuh"

namespace mmvmamba {
MMVMAMBA_FORWARD(c10::BFloat16);
}  // namespace mmvmamba
