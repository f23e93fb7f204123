// What the torch side hands to the CPU kernels of selective_scan.
#pragma once

#include "../scan_common.h"

namespace mmvmamba {

// A sequence tensor (batch, channels, length) of the I/O type with positions next to each other.
struct Sequences {
  const void* data;  // null where the argument is absent
  int64_t batch_stride, channel_stride;
};

// B or C: shared by the channels of a group, [batch][groups][states][length] of the I/O type, or
// constant for each channel, then held in the packed parameters.
struct GroupWeights {
  const void* data;  // null where constant
  int64_t batch_stride, group_stride, state_stride;
};

// An item of work is one sample, one group of channels, and one part of that group's blocks; the
// split depends on sizes alone.
struct SelectiveSizes {
  int64_t batch, channels, length, states, groups, parts;
  bool softplus;
};

// "packed" is by block of one vector's channels, group by group: [groups * blocks][row][lanes] with
// row = A, B, C [states] each, delta bias, D; zero where there is none.
struct SelectiveForward {
  SelectiveSizes sizes;
  Sequences u, delta, z;
  GroupWeights B, C;
  const void* params;  // acc, packed
  void* out;           // io [batch][channels][length]
  void* last_state;    // acc [batch][channels][states]
  void* states;        // acc [batch][chunks][states][channels], or null
};

struct SelectiveBackward {
  SelectiveSizes sizes;
  Sequences u, delta, z, grad_out;
  GroupWeights B, C;
  const void* params;
  const void* states;
  void *grad_u, *grad_delta, *grad_z;  // io [batch][channels][length]; grad_z null without z
  void *grad_B, *grad_C;  // acc [parts][batch][groups][states][length], null where constant
  void* grad_params;      // acc [batch], each packed as params
};

}  // namespace mmvmamba
