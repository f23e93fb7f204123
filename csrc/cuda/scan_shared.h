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

// The most warps of a block whose lanes scan a tile each. The launch bounds ask for two resident
// blocks: of 20 warps together, which leave 96 registers, for one state unless in float64, and of
// 16, which leave 128, otherwise.
constexpr int kMostLaneWarps = 8;
template <typename io_t>
constexpr int lane_threads(bool map_of_one_state) {
  return sizeof(io_t) < 8 && map_of_one_state ? 320 : kMostLaneWarps * 32;
}

// Where a block reads and writes: from the tile's first channel on, of the sample and direction. In
// shared memory, as the compiler would otherwise compute these addresses again for every tile.
struct alignas(16) Sources {
  const void *x, *grad_y, *rows, *weights;
  void *states, *grad_rows, *grad_params, *sum, *out;
};

// Rows of B and C in a slot.
inline int value_rows(const ScanPlan& s) {
  return 2 * (s.states < kStateGroup ? s.states : kStateGroup);
}

// Rows by position, in the I/O type, for tensor cores.
template <typename io_t>
constexpr bool kPositionRows = sizeof(io_t) == 2;

// What a tile of channels needs, at the beginning of its warp's or its block's memory: pointers,
// then biases in pairs, A of one state and the skip connections. Then, at a fixed place, the slots:
// what a tile of positions needs. A slot begins with the positions, then where their sums lie for
// either half of the channels, then B and C of each state, then the low ranks.
template <typename T>
struct Fixed {
  static constexpr int kConstants = sizeof(Sources);
  static constexpr int kSlots = kConstants + 4 * kTileChannels * sizeof(T);
  static constexpr int kPlaces = kTilePositions * sizeof(int32_t);  // in a slot
  static constexpr int kValues = 3 * kPlaces;
};

// Reserves `bytes`, rounded up to 16, and returns where they begin.
inline int32_t take(int64_t& size, int64_t bytes) {
  const int64_t begin = size;
  size += (bytes + 15) / 16 * 16;
  return static_cast<int32_t>(begin);
}

// The slots, which come first.
template <typename io_t>
int64_t lay_out_slots(ScanPlan& s, int64_t count) {
  using T = typename Accumulate<io_t>::type;
  SharedLayout& to = s.shared;
  to.low = Fixed<T>::kValues + value_rows(s) * kTilePositions * static_cast<int>(sizeof(T));
  to.row_bytes = s.rank == 0           ? 0
                 : kPositionRows<io_t> ? (s.octets | 1) * 16
                                       : s.rank * static_cast<int>(sizeof(T));
  to.slot_bytes = to.low + kTilePositions * to.row_bytes;
  int64_t size = Fixed<T>::kSlots;
  take(size, count * to.slot_bytes);
  return size;
}

// dt_weight of a tile of channels, where it is not packed.
template <typename io_t>
int64_t weight_bytes(const ScanPlan& s) {
  return kPositionRows<io_t> ? 0 : s.rank * kTileChannels * int64_t{sizeof(io_t)};
}

// Lays out the shared memory of a block for a plan that is otherwise complete. There is a slot for
// each warp. If several tiles of channels or, in the backward, groups of states use the same rows,
// there is one for each tile of the segment. Returns the size in bytes.
template <typename io_t>
int64_t lay_out(ScanPlan& s, bool backward) {
  using T = typename Accumulate<io_t>::type;
  constexpr int64_t kSize = sizeof(T);
  SharedLayout& to = s.shared;
  s.keep_rows = s.tiles > 1 || (backward && s.states > kStateGroup);
  s.slots = s.keep_rows ? s.segment_tiles : s.warps;
  int64_t size = lay_out_slots<io_t>(s, s.slots);
  to.weight = take(size, weight_bytes<io_t>(s));
  // A split backward reads the flow before each tile from memory.
  const int64_t passed = s.split ? 0 : kTileChannels * kSize;
  to.ends = take(size, int64_t{2} * s.warps * 2 * passed);
  to.carry = take(size, int64_t{value_rows(s)} * passed);
  if (backward) {
    to.weight_pieces = s.octets * 32;
    to.weight_sums = take(size, s.warps * to.weight_pieces * 4 * kSize);
    to.param_sum_count = 2 * kLaneSums + s.state_sums * value_rows(s) / 2 *
                                             (s.states == 1 ? kLaneSums : kTileChannels);
    to.param_sums = take(size, int64_t{s.warps} * to.param_sum_count * kSize);
    // Groups of states add to the ranks, tiles of channels to both.
    to.low_sum_pieces = s.keep_rows ? 2 * to.weight_pieces : 0;
    to.low_sums = take(size, int64_t{s.slots} * to.low_sum_pieces * 4 * kSize);
    to.value_sums = take(size, s.tiles > 1 ? int64_t{s.slots} * value_rows(s) * 32 * kSize : 0);
  }
  const int64_t sum_bytes = kSize * kTileChannels * kTilePositions * s.segment_tiles;
  to.sum_bytes = static_cast<int32_t>(sum_bytes);
  size = (size + 127) / 128 * 128;  // see place_of
  to.sum = take(size, s.tiles * sum_bytes);
  return size;
}

// The same where each lane scans a tile. There is a slot for each of the four steps or, where
// memory is short, one for all. A summary keeps no sums, nor does a single direction whose states
// are one group.
template <typename io_t>
int64_t lay_out_lanes(ScanPlan& s, bool summary) {
  using T = typename Accumulate<io_t>::type;
  SharedLayout& to = s.shared;
  int64_t size = lay_out_slots<io_t>(s, s.slots), own = Fixed<T>::kSlots;
  to.weight = take(own, weight_bytes<io_t>(s));
  to.own_bytes = static_cast<int32_t>(own);
  to.own = take(size, s.warps * own);
  // For two channels: the state, and the product of its decays.
  to.carry = take(size, s.warps * (value_rows(s) / 2) * 32 * 4 * int64_t{sizeof(T)});
  const bool sums = !summary && (s.directions > 1 || s.states > kStateGroup);
  to.sum_bytes =
      sums ? kTeamLanes * kTilePositions * kTileChannels * static_cast<int>(sizeof(T)) : 0;
  to.sum = take(size, int64_t{s.warps} * to.sum_bytes);
  return size;
}

}  // namespace mmvmamba
