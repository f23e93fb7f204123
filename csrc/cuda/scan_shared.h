// The shared memory of a block, for the host, which needs its size, and for the kernels.
#pragma once

#include "scan_args.h"

namespace mmvmamba {

constexpr int kTeamLanes = 4, kTeams = 8;  // lanes that share two channels, and their teams
constexpr int kStep = kTilePositions / kTeamLanes;  // positions of a lane

// The parts of a block's shared memory. Rows are kept for one tile of each warp, or for every tile
// of the segment where several tiles of channels take turns on them.
// Where a block reads. In shared memory, as the compiler would rather add it up for each tile than
// keep it in registers.
struct alignas(16) Sources {
  const void *x, *rows, *weights;  // from the block's channels on; of the direction; of the tile
};

template <typename io_t>
struct Shared {
  using T = typename Accumulate<io_t>::type;
  static constexpr bool kMma = sizeof(io_t) == 2;  // rows by position, in the I/O type

  unsigned char* memory;
  int low, values, position, place, weight, ends, carry, sources, sum;  // offsets in bytes
  int row_bytes, value_rows;
  int64_t size;

  MMVMAMBA_HD Shared(const ScanPlan& s, void* base) : memory(static_cast<unsigned char*>(base)) {
    const int64_t slots = s.tiles > 1 ? s.segment_tiles : s.warps;
    row_bytes = kMma ? slices(s) * 32 + 16 : s.rank * static_cast<int>(sizeof(T));
    value_rows = 2 * (s.states < kStateGroup ? s.states : kStateGroup);
    size = 0;
    low = take(s.rank == 0 ? 0 : slots * kTilePositions * row_bytes);
    values = take(slots * value_rows * kTilePositions * sizeof(T));
    position = take(slots * kTilePositions * sizeof(int32_t));
    place = take(slots * 2 * kTilePositions * sizeof(int32_t));
    weight = take(kMma ? 0 : int64_t{s.rank} * kTileChannels * sizeof(T));
    ends = take(int64_t{2} * s.warps * 2 * kTileChannels * sizeof(T));
    carry = take(int64_t{2} * value_rows * kTileChannels * sizeof(T));
    sources = take(sizeof(Sources));
    size = (size + 127) / 128 * 128;  // see place_of
    sum = take(s.tiles * sum_bytes(s));
  }
  // Of one tile of channels.
  static MMVMAMBA_HD int64_t sum_bytes(const ScanPlan& s) {
    return int64_t{s.segment_tiles} * kTilePositions * kTileChannels * sizeof(T);
  }
  MMVMAMBA_HD int take(int64_t bytes) {
    const int64_t begin = size;
    size += (bytes + 15) / 16 * 16;
    return static_cast<int>(begin);
  }
  template <typename V>
  MMVMAMBA_HD V* part(int offset) const {
    return reinterpret_cast<V*>(memory + offset);
  }
  // The rows of a tile: of ranks or, for tensor cores, of positions. Eight that `ldmatrix` reads at
  // once, two of each lane of a team, follow each other, an odd number of 16 bytes apart.
  MMVMAMBA_HD unsigned char* low_rows(int slot) const {
    return memory + low + slot * kTilePositions * row_bytes;
  }
  static MMVMAMBA_HD int row_of_position(int i) {
    return i % kStep / 2 * kTeams + i / kStep * 2 + i % 2;
  }
  MMVMAMBA_HD T* tile_values(int slot) const {
    return part<T>(values) + slot * value_rows * kTilePositions;
  }
};

}  // namespace mmvmamba
