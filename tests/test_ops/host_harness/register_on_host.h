// Included before all of the harness's sources: what the package's files define as `mmvmamba` and
// implement for CUDA becomes `mmvmamba_host` and runs on the CPU.
#pragma once

#include <torch/csrc/stable/library.h>

#undef STABLE_TORCH_LIBRARY_FRAGMENT
#define STABLE_TORCH_LIBRARY_FRAGMENT(ns, m) \
  _STABLE_TORCH_LIBRARY_FRAGMENT(mmvmamba_host, m, C10_UID)

#undef STABLE_TORCH_LIBRARY_IMPL
#define STABLE_TORCH_LIBRARY_IMPL(ns, key, m) MMVMAMBA_HOST_IMPL_##key(m)
#define MMVMAMBA_HOST_IMPL_CUDA(m) _STABLE_TORCH_LIBRARY_IMPL(mmvmamba_host, CPU, m, C10_UID)
#define MMVMAMBA_HOST_IMPL_CompositeExplicitAutograd(m) \
  _STABLE_TORCH_LIBRARY_IMPL(mmvmamba_host, CompositeExplicitAutograd, m, C10_UID)
