// What the torch faces of the CPU kernels share.
#pragma once

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include "../checks.h"
#include "kernels.h"

namespace mmvmamba {

// Items of work that a call is split into, at least, where there are that many blocks of channels.
constexpr int64_t kItems = 16;

// The kernels' name for a dtype; a TypeError where they do not take it.
Io io_of(c10::ScalarType type);

// The sum over the first dimension as a tensor of a dtype; adds in a fixed order, whatever the
// threads. May be the memory of `parts`, which is not to be used afterwards.
at::Tensor sum_first(const at::Tensor& parts, at::ScalarType type);

}  // namespace mmvmamba
