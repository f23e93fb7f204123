// What the torch side hands to the CUDA kernels: pointers, sizes and strides, no torch type.
//
// One family of kernels serves both ops. A sequence has L positions; position a of a direction's
// walk lies at position p of memory, with p = a along rows and (a % H) W + a / H along columns. A
// 1-D sequence is a map of one row.
#pragma once

#include <cstdint>

#include "../scan_common.h"

namespace mmvmamba {

// What a launch does. kBlocks: a whole scan, or the sweep of a split backward. kSummary: find the
// effect of each tile on a state. kLanes: the sweep of a split forward, from the state before each
// tile.
enum class ScanPass { kBlocks, kSummary, kLanes };

enum class DeviceIo { kFloat, kHalf, kBFloat16, kDouble };

// Elements are data[n * batch + p * position + c * channel]; null where the argument is absent.
struct MapView {
  void* data;
  int64_t batch, channel;
  int32_t position;

  template <typename io_t>
  MMVMAMBA_HD io_t* at(int64_t n, int64_t c) const {
    return static_cast<io_t*>(data) + n * batch + c * channel;
  }
};

// Values that all channels of a group share: data[n * batch + g * group + p * position +
// k * direction + i * item]; null where B or C is constant.
struct RowView {
  void* data;
  int64_t batch, group;
  int32_t position, direction, item;

  template <typename io_t>
  MMVMAMBA_HD io_t* row(int64_t n, int64_t g, int64_t k) const {
    return static_cast<io_t*>(data) + n * batch + g * group + k * direction;
  }
};

// The type of states and sums for an I/O type.
template <typename io_t>
struct Accumulate {
  using type = float;
};
template <>
struct Accumulate<double> {
  using type = double;
};

constexpr int kTilePositions = 32, kTileChannels = 16;  // of a warp's tile
constexpr int kStateGroup = 16;                         // states whose B and C are kept
constexpr int kMaxDirections = 8;                       // of one launch
constexpr double kLog2E = 1.4426950408889634074, kLn2 = 0.69314718055994530942;

// The directions of a launch, one after the other in a block; `begin` and `end` say whether the
// output is set or added to, and whether the sum is final.
struct ScanDirections {
  int32_t count;
  int32_t index[kMaxDirections], order[kMaxDirections];
  bool begin, end;
};

// Parameters, acc.
struct ScanParams {
  const void* dt_weight;  // [directions][channels][rank], null without low-rank time steps
  const void* dt_bias;    // [directions][channels] or null
  const void* A;          // [directions][channels][states]
  const void* D;          // [directions][channels] or null
  const void *B, *C;      // [channels][states] where constant, else null
};

// Division of 0 <= n < 2^31 by a number of the host's, as a product (Granlund and Montgomery 1994).
struct Divisor {
  uint32_t factor, shift;
  Divisor() = default;
  explicit Divisor(int64_t d) {
    shift = 0;
    while ((int64_t{1} << shift) < d) ++shift;
    factor = static_cast<uint32_t>(((int64_t{1} << (31 + shift)) + d - 1) / d);
  }
  MMVMAMBA_HD int operator()(int n) const {
    const uint64_t product = uint64_t{2 * static_cast<uint32_t>(n)} * factor;
    return static_cast<int>(static_cast<uint32_t>(product >> 32) >> shift);
  }
};

// The parts of a block's shared memory, in bytes, see `lay_out`.
struct SharedLayout {
  int32_t slot_bytes, low, row_bytes;  // of a tile's slot; its low ranks in it, and a row of them
  int32_t weight, ends, carry;
  int32_t weight_sums, param_sums;         // backward: of each warp, for the parameters' gradients
  int32_t weight_pieces, param_sum_count;  // of a warp, in fours and ones
  int32_t low_sums, value_sums;            // backward: of each tile, over tiles of channels
  int32_t low_sum_pieces;                  // of a tile, in fours
  int32_t sum, sum_bytes;                  // of the directions; of a tile of channels
  int32_t own, own_bytes;                  // lanes: what each warp's tile of channels needs
};

// How a call is split. A block scans a segment of the axis, `warps` tiles of positions at a time,
// for `tiles` tiles of channels one after the other. No tile of channels crosses a group of B and
// C. Where each lane scans a tile, a block has four tiles of positions at a time, and each of its
// warps has a tile of channels of its own.
struct ScanPlan {
  Divisor by_height, by_eight_rows;                    // by height, by 8 width
  Divisor by_parts, by_groups, by_segments, by_batch;  // of the blocks
  int32_t length, batch, height, width, channels, group_channels, states, rank, directions;
  int32_t warps, tiles, group_parts;
  int32_t segment_tiles, segments;
  int32_t axis_tiles, groups, group_tiles;  // tiles of positions; groups, and their tiles
  int64_t walk_states;                      // of the states before a walk's tiles
  int32_t octets;                           // of ranks
  int32_t packed_bytes;                     // of dt_weight of a tile of channels, see pack_weight
  int32_t state_sums;  // backward: sums over positions of each state; one, or more if B or C is
                       // constant
  int32_t row;         // elements from a position's low ranks to the next one's
  bool row_pieces;     // whether it consists of pieces of 16 bytes that may be read as one
  bool row_words;      // whether it may be read in 4 bytes
  uint32_t tail[4];    // which bits of a row's last eight ranks are such, in 16 bits each
  bool softplus;
  bool keep_rows;  // of all tiles of the segment, and not of one for each warp
  bool split;      // whether there is a summary, and a launch for each axis
  int32_t slots;   // of rows that are kept
  SharedLayout shared;
};

// Pieces of 16 channels and 8 ranks that dt_weight is packed into, and words of each.
inline int64_t packed_weight_pieces(const ScanPlan& s) {
  return int64_t{s.directions} * s.groups * s.group_tiles * s.octets;
}
constexpr int kPackedWords = 192;

// What both ways need.
struct ScanCall {
  ScanPlan plan;
  DeviceIo io;
  bool backward;
  bool pack_weights;  // before this launch, the first of the call
  bool is_map;  // channels side by side, even in number and aligned in pairs; low-rank time steps
  bool wide;    // whether 8 channels may be read as one, in the maps and the outputs
  ScanDirections directions;
  ScanParams params;
  MapView x, delta;     // io; delta where there is no rank
  RowView low, B, C;    // io
  void* packed_weight;  // dt_weight as the tensor cores take it, in half precision
  void* decay;          // acc [batch][directions][tiles][states][channels], set by the summary
  void* state;          // likewise; at the end of each tile, then before it
  void* states;         // likewise; before each tile, that a forward saves for its backward; or
                        // null
  MapView sum;          // acc, the sum over directions
  MapView out;  // io, the final sum in a narrow type; null where `sum` is the output. A single
                // launch has one of them
};

struct ScanForward : ScanCall {
  void* last_state;  // acc [batch][channels][states], or null
};

struct ScanBackward : ScanCall {
  MapView grad_y;  // io or acc
  bool grad_y_is_acc;
  MapView grad_delta;  // where there is no rank; acc if states come in groups, else io
  RowView grad_low, grad_B, grad_C;  // acc, one part for each block of a group's channels
  int64_t low_part, row_part;        // elements from one part to the next
  void* grad_params;  // acc [batch * segments][directions][rows][channels], rows as in ParamRows
};

// Rows of the parameters' gradients. That of D is set in the first direction of the first launch:
// it is the same for all.
struct ParamRows {
  int32_t A, bias, D, B, C, count;
  MMVMAMBA_HD explicit ParamRows(const ScanPlan& s, bool constant_B, bool constant_C)
      : A(s.rank),
        bias(A + s.states),
        D(bias + 1),
        B(D + 1),
        C(B + (constant_B ? s.states : 0)),
        count(C + (constant_C ? s.states : 0)) {}
};

}  // namespace mmvmamba
