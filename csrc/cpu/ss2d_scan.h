// What the torch side hands to the CPU kernels of ss2d_scan.
#pragma once

#include <algorithm>

#include "../scan_common.h"

namespace mmvmamba {

// Sizes and the split of the work, which depends on sizes alone: results do not depend on the
// number of threads. An item of work is one sample and one group of neighboring channels.
struct SS2DSizes {
  int64_t batch, height, width, channels, directions, rank, states;
  int64_t groups;         // of channels, for each sample
  const int64_t* orders;  // [directions]
};

// Tensors are contiguous; `acc` is float, or double for double I/O.
struct SS2DParams {
  const void* dt_weight;  // acc [directions][channels][rank]
  const void* dt_bias;    // acc [directions][channels]
  const void* A;          // acc [directions][channels][states]
  const void* D;          // acc [directions][channels]
};
// Their gradients, each [batch] before that.
struct SS2DParamGrads {
  void *dt_weight, *dt_bias, *A, *D;
};

struct SS2DForward {
  SS2DSizes sizes;
  const void* x;     // io [batch][L][channels]
  const void* rows;  // acc [batch][directions][L][rank + 2 states], packed
  SS2DParams params;
  void* y;  // io or acc [batch][L][channels]
  bool y_is_acc;
  void* states;  // acc [batch][directions][chunks][states][channels], or null
};

struct SS2DBackward {
  SS2DSizes sizes;
  const void* x;
  const void* rows;
  SS2DParams params;
  const void* states;
  const void* grad_y;  // io or acc [batch][L][channels]
  bool grad_y_is_acc;
  void* grad_x;     // io [batch][L][channels]
  void* grad_rows;  // acc [groups][batch][directions][L][rank + 2 states]
  SS2DParamGrads grads;
};

// Work items that a call is split into, at least, where there are that many blocks of channels.
constexpr int64_t kWorkItems = 16;

// Channels of `groups` groups are split in whole blocks.
inline int64_t blocks_per_group(int64_t blocks, int64_t groups) { return ceil_div(blocks, groups); }

// The groups of a sample's blocks, none of them empty, so that threads get equal shares.
inline int64_t groups_of(int64_t blocks, int64_t batch) {
  const int64_t most = std::min(blocks, ceil_div(kWorkItems, std::max<int64_t>(1, batch)));
  return ceil_div(blocks, blocks_per_group(blocks, most));
}

}  // namespace mmvmamba
