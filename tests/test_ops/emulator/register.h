// Included before every source: what they define as `mmvmamba` and implement for CUDA becomes
// `mmvmamba_emulated` and takes tensors of the CPU.
#pragma once

#include <torch/csrc/stable/library.h>

#undef STABLE_TORCH_LIBRARY_FRAGMENT
#define STABLE_TORCH_LIBRARY_FRAGMENT(ns, m) \
  _STABLE_TORCH_LIBRARY_FRAGMENT(mmvmamba_emulated, m, C10_UID)

#undef STABLE_TORCH_LIBRARY_IMPL
#define STABLE_TORCH_LIBRARY_IMPL(ns, key, m) MMVMAMBA_EMULATED_IMPL_##key(m)
#define MMVMAMBA_EMULATED_IMPL_CUDA(m) \
  _STABLE_TORCH_LIBRARY_IMPL(mmvmamba_emulated, CPU, m, C10_UID)
#define MMVMAMBA_EMULATED_IMPL_CompositeExplicitAutograd(m) \
  _STABLE_TORCH_LIBRARY_IMPL(mmvmamba_emulated, CompositeExplicitAutograd, m, C10_UID)
