// What the torch side hands to the CUDA kernels: pointers, sizes and strides, no torch type.
//
// One family of kernels serves both ops. A sequence has L positions; position a of a direction's
// walk lies at position p of memory, with p = a along rows and (a % H) W + a / H along columns. A
// 1-D sequence is a map of one row. Everything is counted in elements of 64 bits.
#pragma once

#include <cstdint>

#include "../scan_common.h"

namespace mmvmamba {

enum class DeviceIo { kFloat, kHalf, kBFloat16, kDouble };

// Elements are data[n * batch + p * position + c * channel]; null where the argument is absent.
struct MapView {
  void* data;
  int64_t batch, position, channel;
};

// Values that all channels of a group share: data[n * batch + g * group + p * position +
// k * direction + i * item]; null where B or C is constant.
struct RowView {
  void* data;
  int64_t batch, group, position, direction, item;
};

// Channels are worked on in blocks of `lanes` threads' width, none of which crosses a group of B
// and C. Chunks of kChunk positions, counted along the axis and not along the walk, are worked on
// one after the other in a segment; segments side by side.
struct ScanSizes {
  int64_t batch, height, width, length;
  int64_t channels, group_channels, states, rank, directions;
  int64_t lanes, group_blocks;  // threads over channels; blocks of channels in a group
  int64_t chunks, segment_chunks, segments;
  bool softplus;
};

constexpr int kMaxDirections = 8;  // of one launch

constexpr int kMaxLanes = 64, kLaneStep = 32;  // of a block

// States that are worked on at a time where there are several.
constexpr int kForwardGroup = 8, kBackwardGroup = 4;

// The directions of a launch, one after the other in a block; `begin` and `end` say whether the
// output is set or added to, and whether the sum is final.
struct ScanDirections {
  int32_t count;
  int32_t index[kMaxDirections], order[kMaxDirections];
  bool begin, end;
};

// Parameters, acc, channels next to each other.
struct ScanParams {
  const void* dt_weight;  // [directions][rank][channels], null without low-rank time steps
  const void* dt_bias;    // [directions][channels] or null
  const void* A;          // [directions][states][channels]
  const void* D;          // [directions][channels] or null
  const void *B, *C;      // [states][channels] where constant, else null
};

struct ScanForward {
  ScanSizes sizes;
  DeviceIo io;
  ScanDirections directions;
  ScanParams params;
  MapView x, delta;   // io; delta where there is no rank
  RowView low, B, C;  // io
  MapView sum;        // acc, the sum over directions
  MapView y;          // io, the final sum in a narrow type; null where `sum` is the output
  void* carry;        // acc [2][batch][directions][segments][states][channels], see scan_common
  void* segment_dt;   // acc [batch][directions][segments][channels], written by the summary
  void* states;       // acc [batch][directions][chunks][states][channels], or null
  void* last_state;   // acc [batch][channels][states], or null
};

struct ScanBackward {
  ScanSizes sizes;
  DeviceIo io;
  ScanDirections directions;
  ScanParams params;
  MapView x, delta;
  RowView low, B, C;
  MapView grad_y;  // io or acc
  bool grad_y_is_acc;
  const void* states;
  void* carry;                       // acc, as in the forward: gradients that flow back
  void* segment_dt;                  // acc, as in the forward
  MapView sum;                       // acc, the sum of grad_x over directions
  MapView grad_x;                    // io, or null where `sum` is the output
  MapView grad_delta;                // io, where there is no rank
  RowView grad_low, grad_B, grad_C;  // acc, one part for each block of a group's channels
  int64_t low_part, row_part;        // elements from one part to the next
  void* grad_params;  // acc [batch * segments][directions][rows][channels], rows as in ParamRows
  bool keep_weight_on_chip;  // whether the sums of grad dt_weight fit into shared memory
};

// Combines the segments of one walk: the state before each segment.
struct ScanCarry {
  ScanSizes sizes;
  DeviceIo io;
  ScanDirections directions;
  const void* A;
  void *carry, *segment_dt;
  bool backward;  // gradients flow against the walk
};

// Rows of the parameters' gradients.
struct ParamRows {
  int64_t A, bias, D, B, C, count;
  MMVMAMBA_HD explicit ParamRows(const ScanSizes& s, bool constant_B, bool constant_C)
      : A(s.rank),
        bias(A + s.states),
        D(bias + 1),
        B(D + 1),
        C(B + (constant_B ? s.states : 0)),
        count(C + (constant_C ? s.states : 0)) {}
};

}  // namespace mmvmamba
