// The shared memory of a block, which the host lays out and the kernels use.
#pragma once

#include "scan_args.h"

namespace mmvmamba {

constexpr int kTeamLanes = 4, kTeams = 8;  // lanes that share two channels, and their teams
constexpr int kStep = kTilePositions / kTeamLanes;  // positions of a lane
constexpr int kLaneSums = 2 * 32;                   // sums of a warp where each lane has its own

// The most warps of a multiprocessor, and of a block: 20 leave 96 registers to each thread, 12
// leave 168, and 8 all 255. Override the first two only for benchmarks.
#ifndef MMVMAMBA_FORWARD_WARPS
#define MMVMAMBA_FORWARD_WARPS 20
#endif
#ifndef MMVMAMBA_BACKWARD_WARPS
#define MMVMAMBA_BACKWARD_WARPS 12
#endif
template <typename io_t>
constexpr int most_warps(bool backward, bool map_of_one_state) {
  const bool small = sizeof(io_t) == 2 && map_of_one_state;
  if (!backward) return small ? MMVMAMBA_FORWARD_WARPS : 16;
  return small ? MMVMAMBA_BACKWARD_WARPS : 8;
}

// Where a block reads and writes: from the tile's first channel on, of the sample and direction. In
// shared memory, as the compiler would otherwise compute these addresses again for every tile.
struct alignas(16) Sources {
  const void *x, *grad_y, *rows, *weights;
  void *states, *grad_rows;
};

// Rows by position, in the I/O type, for tensor cores.
template <typename io_t>
constexpr bool kPositionRows = sizeof(io_t) == 2;

// What comes first, at fixed places: pointers, a tile's biases in fours and A of one state, then
// the slots: what a tile of positions needs, for one tile of each warp or, where tiles of channels
// or groups of states take turns on them, for every tile of the segment. A slot begins with the
// positions, then where their sums lie for either half of the channels, then B and C of each state,
// then the low ranks.
template <typename T>
struct Fixed {
  static constexpr int kConstants = sizeof(Sources);
  static constexpr int kSlots = kConstants + 3 * kTileChannels * sizeof(T);
  static constexpr int kPlaces = kTilePositions * sizeof(int32_t);  // in a slot
  static constexpr int kValues = 3 * kPlaces;
};

// Sets the layout for a split, of which all but the layout is known. Returns its size in bytes.
template <typename io_t>
int64_t lay_out(ScanPlan& s, bool backward) {
  using T = typename Accumulate<io_t>::type;
  constexpr int64_t kSize = sizeof(T);
  SharedLayout& to = s.shared;
  int64_t size = Fixed<T>::kSlots;
  const auto take = [&](int64_t bytes) {
    const int64_t begin = size;
    size += (bytes + 15) / 16 * 16;
    return static_cast<int32_t>(begin);
  };
  s.keep_rows = s.tiles > 1 || (backward && s.states > kStateGroup);
  const int64_t slots = s.keep_rows ? s.segment_tiles : s.warps;
  const int value_rows = 2 * (s.states < kStateGroup ? s.states : kStateGroup);
  to.low = Fixed<T>::kValues + value_rows * kTilePositions * static_cast<int>(kSize);
  to.row_bytes = s.rank == 0           ? 0
                 : kPositionRows<io_t> ? (s.octets | 1) * 16
                                       : s.rank * static_cast<int>(kSize);
  to.slot_bytes = to.low + kTilePositions * to.row_bytes;
  take(slots * to.slot_bytes);
  to.weight = take(kPositionRows<io_t> ? 0 : s.rank * kTileChannels * kSize);
  to.ends = take(int64_t{2} * s.warps * 2 * kTileChannels * kSize);
  to.carry = take(int64_t{2} * value_rows * kTileChannels * kSize);
  if (backward) {
    to.weight_pieces = s.octets * 32;
    to.weight_sums = take(s.warps * to.weight_pieces * 4 * kSize);
    to.param_sum_count =
        2 * kLaneSums + s.state_sums * value_rows / 2 * (s.states == 1 ? kLaneSums : kTileChannels);
    to.param_sums = take(int64_t{s.warps} * to.param_sum_count * kSize);
    // Groups of states add to the ranks, tiles of channels to both.
    to.low_sum_pieces = s.keep_rows ? 2 * to.weight_pieces : 0;
    to.low_sums = take(slots * to.low_sum_pieces * 4 * kSize);
    to.value_sums = take(s.tiles > 1 ? slots * value_rows * 32 * kSize : 0);
  }
  const int64_t sum_bytes = kSize * kTileChannels * kTilePositions * s.segment_tiles;
  to.sum_bytes = static_cast<int32_t>(sum_bytes);
  size = (size + 127) / 128 * 128;  // see place_of
  to.sum = take(s.tiles * sum_bytes);
  return size;
}

}  // namespace mmvmamba
