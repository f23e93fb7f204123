// What a warp of the forward does with its tile of 16 channels and 32 positions: the rows of proj
// that it needs, time steps, and the scan over the tiles of a block.
//
//            position  0 ... 7   8 ... 15   16 ... 23   24 ... 31     in the order of the walk
//   channels  0, 1     lane  0   lane  1    lane  2     lane  3       "team" 0
//             2, 3     lane  4   lane  5    lane  6     lane  7       "team" 1
//              ...
//            14, 15    lane 28   lane 29    lane 30     lane 31       "team" 7
//
// A lane walks its 8 positions in registers for two channels at once. Its time steps are what a
// lane holds of the product of dt_weight (16 channels, 16 ranks) and the rows (16 ranks, 8
// positions) by the tensor cores, with channels and positions in a suitable order. A team's lanes
// combine what their positions do to a state by shuffles, the warps of a block through shared
// memory: warp w has tile w of a round.
//
// Time steps are in units of log2(e): `dt` stands for log2(e) dt, so that a decay is exp2(A dt).
// States then stand for log2(e) h, and C is multiplied by ln 2.
#pragma once

#include "ptx.h"
#include "scan_shared.h"

namespace mmvmamba {

#define MMVMAMBA_UNROLL _Pragma("unroll")

// Two neighboring channels or ranks.
template <typename T>
struct alignas(2 * sizeof(T)) Pair {
  T v[2];
};
template <typename half_t>
__device__ __forceinline__ Pair<float> unpack(uint32_t word) {
  half_t low, high;
  low.x = static_cast<uint16_t>(word);
  high.x = static_cast<uint16_t>(word >> 16);
  return {{static_cast<float>(low), static_cast<float>(high)}};
}

__device__ __forceinline__ float exp2_of(float x) { return exp2_approx(x); }
__device__ __forceinline__ double exp2_of(double x) { return ::exp2(x); }

// The element at `index` times `stride` elements: a product and a sum in one instruction.
template <typename V>
__device__ __forceinline__ V* at(V* from, int index, int stride) {
  using Byte = std::conditional_t<std::is_const_v<V>, const char, char>;
  return reinterpret_cast<V*>(reinterpret_cast<Byte*>(from) +
                              multiply_wide(index, stride * static_cast<int>(sizeof(V))));
}

__device__ __forceinline__ int smaller(int a, int b) { return a < b ? a : b; }

// log2(1 + 2^v) = max(v, 0) + log2(1 + t) with t = 2^-|v|. log2(1 + t) / t is a minimax polynomial
// on [0, 1], with a relative error of 8.4e-6 for 16 bits and of 4.5e-8 for float32.
template <typename io_t>
__device__ __forceinline__ float softplus(float v) {
  const float t = exp2_of(-fabsf(v));
  float p;
  if constexpr (sizeof(io_t) > 2) {
    p = -0.0046794696f * t + 0.028637541f;
    p = p * t - 0.082173541f;
    p = p * t + 0.1529794f;
    p = p * t - 0.22081558f;
    p = p * t + 0.28386552f;
    p = p * t - 0.36001257f;
    p = p * t + 0.48084978f;
    p = p * t - 0.72134612f;
    p = p * t + 1.442695034f;
  } else {
    p = -0.034435961f * t + 0.146033055f;
    p = p * t - 0.30303638f;
    p = p * t + 0.46917415f;
    p = p * t - 0.72042618f;
    p = p * t + 1.44268292f;
  }
  return p * t + fmaxf(v, 0.f);
}
// As PyTorch's, it is v itself above 20, in natural units.
template <typename io_t>
__device__ __forceinline__ double softplus(double v) {
  return v > 20 * kLog2E ? v : ::log1p(::exp2(v)) * kLog2E;
}

// What a block works on.
struct Work {
  int sample, direction, group, part;
  int segment;
  int channel, channel_end;  // of the block

  // `index` counts parts of a group's channels fastest, then groups, segments, samples, directions.
  __device__ Work(const ScanPlan& s, uint32_t index) {
    const uint32_t groups = s.channels / s.group_channels;
    part = static_cast<int>(index % s.group_parts);
    index /= s.group_parts;
    group = static_cast<int>(index % groups);
    index /= groups;
    segment = static_cast<int>(index % s.segments);
    index /= s.segments;
    sample = static_cast<int>(index % s.batch);
    direction = static_cast<int>(index / s.batch);
    channel = group * s.group_channels + part * s.tiles * kTileChannels;
    channel_end = smaller((group + 1) * s.group_channels, channel + s.tiles * kTileChannels);
  }
};

// A lane's place: its two channels are `channel` and `channel + next`, and `active` of them are its
// own. Lanes beyond the block's channels compute the last pair once more, so that pairs stay
// aligned.
struct Place {
  int lane, warp, team, run;
  int channel, next, active;

  __device__ Place()
      : lane(static_cast<int>(threadIdx.x) % 32),
        warp(static_cast<int>(threadIdx.x) / 32),
        team(lane / kTeamLanes),
        run(lane % kTeamLanes) {}
  __device__ void at(const Work& work, int tile) {
    const int first = work.channel + tile * kTileChannels + 2 * team, end = work.channel_end;
    channel = first < end ? first : end - 2 + end % 2;
    next = channel + 1 < end ? 1 : 0;
    active = first < end ? 1 + next : 0;
  }
};

// A tile of positions along the axis, `count` of which exist.
struct Tile {
  int first, count;
  bool reversed;
  __device__ Tile(const ScanPlan& s, int index, bool reversed)
      : first(index * kTilePositions),
        count(smaller(s.length - first, kTilePositions)),
        reversed(reversed) {}
  __device__ bool has(int i) const {  // the i-th of the walk
    return (reversed ? kTilePositions - 1 - i : i) < count;
  }
};

// 16 bytes at a time.
template <typename T>
__device__ __forceinline__ void load_row(const T* from, T (&to)[kStep]) {
  struct alignas(16) Piece {
    T v[16 / sizeof(T)];
  };
  MMVMAMBA_UNROLL
  for (int i = 0; i < kStep; i += 16 / static_cast<int>(sizeof(T))) {
    const Piece piece = *reinterpret_cast<const Piece*>(from + i);
    MMVMAMBA_UNROLL
    for (int j = 0; j < 16 / static_cast<int>(sizeof(T)); ++j) to[i + j] = piece.v[j];
  }
}

// Where the block's sum of a position lies, for the first four teams or the others. Lanes of a
// team, whose positions are 8 apart along either axis, shall meet in no bank: rows of 16 channels
// change places with others of their 128 bytes, even and odd positions alike.
template <typename T>
__device__ __forceinline__ int32_t place_of(const ScanPlan& s, int index, int half) {
  int32_t place =
      index * kTileChannels * int{sizeof(T)} + half * kTileChannels / 2 * int{sizeof(T)};
  if constexpr (sizeof(T) == 4) {
    const int line = s.segments == 1 && s.width % 2 == 0 ? s.by_eight_rows(index) : 0;
    place ^= (index / 8 + line & 3) * 32;
  }
  return place;
}

// The low ranks of a position. In half precision a row is padded with zeros, or with what follows
// it in memory, which zero weights multiply: B and C, which must be finite, and nothing beyond
// them.
template <typename io_t>
__device__ __forceinline__ void stage_low(const ScanPlan& s, const io_t* from, int slot,
                                          const Place& me, const Shared<io_t>& shared) {
  using T = typename Accumulate<io_t>::type;
  if constexpr (Shared<io_t>::kMma) {
    unsigned char* to =
        shared.low_rows(slot) + Shared<io_t>::row_of_position(me.lane) * shared.row_bytes;
    const int padded = slices(s) * 2, words = (s.rank + 1) / 2;  // of 16 and of 4 bytes
    uint4* piece = reinterpret_cast<uint4*>(to);
    if (s.row_pieces > 0) {
      _Pragma("unroll 1") for (int i = 0; i < padded; ++i) {
        piece[i] =
            i < s.row_pieces ? reinterpret_cast<const uint4*>(from)[i] : make_uint4(0, 0, 0, 0);
      }
    } else if (s.row_words) {
      const uint32_t* word = reinterpret_cast<const uint32_t*>(from);
      _Pragma("unroll 1") for (int i = 0; i < padded; ++i) {
        const auto at = [&](int j) { return 4 * i + j < words ? word[4 * i + j] : 0; };
        piece[i] = make_uint4(at(0), at(1), at(2), at(3));
      }
    } else {
      io_t* low = reinterpret_cast<io_t*>(to);
      _Pragma("unroll 1") for (int r = 0; r < 8 * padded; ++r) low[r] =
          r < s.rank ? from[r] : io_t(0.f);
    }
  } else {
    T* to = reinterpret_cast<T*>(shared.low_rows(slot)) + me.lane;
    for (int r = 0; r < s.rank; ++r) to[r * kTilePositions] = static_cast<T>(from[r]);
  }
}

// Copies what a lane's position needs into shared memory: where it lies, its low ranks, and B and C
// of `count` states from `first` on, which are 1 where they are constant. `from` are the rows of a
// sample, a group and a direction.
template <typename io_t, bool kMap>
__device__ __forceinline__ void stage(const ScanPlan& s, const Tile& tile, const Work& work,
                                      bool columns, int slot, const Place& me,
                                      const Shared<io_t>& shared, const io_t* rows,
                                      const RowView& B, const RowView& C, int k, int first,
                                      int count) {
  using T = typename Accumulate<io_t>::type;
  // Beyond the end it is the last position once more, but a place of its own.
  const int i = tile.reversed ? kTilePositions - 1 - me.lane : me.lane;
  const bool exists = i < tile.count;
  const int a = exists ? tile.first + i : s.length - 1, line = s.by_height(a);
  const int p = columns ? (a - line * s.height) * s.width + line : a;
  const int index = exists && s.segments == 1
                        ? p
                        : tile.first + i - work.segment * s.segment_tiles * kTilePositions;
  shared.template part<int32_t>(shared.position)[slot * kTilePositions + me.lane] = p;
  int32_t* place =
      shared.template part<int32_t>(shared.place) + slot * 2 * kTilePositions + me.lane;
  const int32_t first_half = place_of<T>(s, index, 0);
  place[0] = first_half;
  place[kTilePositions] = first_half ^ (kTileChannels / 2 * int{sizeof(T)});
  const io_t* row = kMap || s.rank > 0 ? at(rows, p, s.row) : nullptr;
  if (kMap || s.rank > 0) stage_low<io_t>(s, row, slot, me, shared);
  T* to = shared.tile_values(slot) + me.lane;
  const T one = exists ? T(1) : T(0), ln2 = exists ? T(kLn2) : T(0);
  const io_t *b, *c;
  if constexpr (kMap) {
    b = row + s.rank + first;
    c = b + s.states;
  } else {
    b = at(B.row<io_t>(work.sample, work.group, k), p, B.position) + int64_t{first} * B.item;
    c = at(C.row<io_t>(work.sample, work.group, k), p, C.position) + int64_t{first} * C.item;
  }
  _Pragma("unroll 1") for (int n = 0; n < count; ++n, to += 2 * kTilePositions) {
    to[0] =
        kMap || B.data != nullptr ? static_cast<T>(b[kMap ? n : int64_t{n} * B.item]) * one : one;
    to[kTilePositions] =
        kMap || C.data != nullptr ? static_cast<T>(c[kMap ? n : int64_t{n} * C.item]) * ln2 : ln2;
  }
}

// dt_weight of 16 channels for the tensor cores, in units of log2(e): for each 16 ranks a fragment
// of the weights rounded to the I/O type, then one of their rounding errors. The rows are the first
// channels of the teams, then the second ones.
template <typename io_t>
__device__ __forceinline__ void pack_weight(const ScanForward& a, int64_t index) {
  const ScanPlan& s = a.plan;
  const int word = static_cast<int>(index % 128), lane = word / 4, piece = word % 4;
  const int slice = static_cast<int>(index / 128 % slices(s));
  const int64_t tile = index / 128 / slices(s);  // of 16 channels, of all directions
  const int group = static_cast<int>(tile / group_tiles(s) % (s.channels / s.group_channels));
  const int64_t k = tile / group_tiles(s) / (s.channels / s.group_channels);
  const int in_group =
      static_cast<int>(tile % group_tiles(s)) * kTileChannels + lane / kTeamLanes * 2 + piece % 2;
  const int r = slice * 16 + lane % kTeamLanes * 2 + piece / 2 * 8;
  const float* from = static_cast<const float*>(a.params.dt_weight) +  // (K, C, R)
                      ((k * s.channels + group * s.group_channels + in_group) * s.rank + r);
  const bool exists = in_group < s.group_channels;
  // float16 holds no more; the error of rounding a larger one would be infinite.
  const float most = std::is_same_v<io_t, torch::headeronly::Half> ? 65504.f : 3.3e38f;
  const auto scale = [&](bool here, int i) {
    return here ? fminf(fmaxf(from[i] * float{kLog2E}, -most), most) : 0.f;
  };
  const float u = scale(exists && r < s.rank, 0), v = scale(exists && r + 1 < s.rank, 1);
  uint32_t* to = static_cast<uint32_t*>(a.packed_weight) + index / 128 * 256 + word;
  const uint32_t high = pack<io_t>(u, v);
  const Pair<float> rounded = unpack<io_t>(high);
  to[0] = high;
  to[128] = pack<io_t>(u - rounded.v[0], v - rounded.v[1]);
}

// dt_weight of the block's 16 channels in shared memory, in units of log2(e), by all threads, where
// it is not packed.
template <typename io_t>
__device__ __forceinline__ void stage_weights(const ScanPlan& s, const void* dt_weight, int k,
                                              const Work& work, int tile,
                                              const Shared<io_t>& shared) {
  using T = typename Accumulate<io_t>::type;
  const T* from = static_cast<const T*>(dt_weight) + int64_t{k} * s.channels * s.rank;
  T* to = shared.template part<T>(shared.weight);
  for (int i = static_cast<int>(threadIdx.x); i < s.rank * kTileChannels;
       i += static_cast<int>(blockDim.x)) {
    const int c =
        smaller(work.channel + tile * kTileChannels + i % kTileChannels, work.channel_end - 1);
    to[i] = from[int64_t{c} * s.rank + i / kTileChannels] * T(kLog2E);  // (C, R)
  }
}

// Time steps before softplus of a lane's positions, for its two channels, from their biases on.
template <typename io_t, typename T>
__device__ __forceinline__ void rank_product(const ScanPlan& s, int slot, const Place& me,
                                             const Shared<io_t>& shared, const uint4* packed,
                                             const T (&bias)[2], T (&dt)[kStep][2]) {
  if constexpr (kHasMma<io_t>) {
    // Column n of matrix j is position 8 (n / 2) + 2 j + n % 2. A load has two matrices of 8 ranks,
    // for two j.
    const unsigned lane = threadIdx.x % 32;
    const unsigned char* rows = shared.low_rows(slot) +
                                (lane / 16 * kTeams + lane % 8) * shared.row_bytes +
                                lane / 8 % 2 * 16;
    const float start[4] = {bias[0], bias[0], bias[1], bias[1]};
    float z[4][4];
    const auto slice = [&](int i, auto first) {
      uint32_t b[2][4];
      ldmatrix_x4(b[0], rows + i * 32);
      ldmatrix_x4(b[1], rows + 2 * kTeams * shared.row_bytes + i * 32);
      const uint4 h = packed[i * 64], l = packed[i * 64 + 32];
      const uint32_t high[4] = {h.x, h.y, h.z, h.w}, low[4] = {l.x, l.y, l.z, l.w};
      MMVMAMBA_UNROLL
      for (int j = 0; j < 4; ++j) {
        const uint32_t (&column)[2] = reinterpret_cast<const uint32_t (&)[2]>(b[j / 2][j % 2 * 2]);
        if constexpr (decltype(first)::value) {
          mma_16x8x16<io_t>(z[j], high, column, start);
        } else {
          mma_16x8x16<io_t>(z[j], high, column, z[j]);
        }
      }
      MMVMAMBA_UNROLL
      for (int j = 0; j < 4; ++j) {
        const uint32_t (&column)[2] = reinterpret_cast<const uint32_t (&)[2]>(b[j / 2][j % 2 * 2]);
        mma_16x8x16<io_t>(z[j], low, column, z[j]);
      }
    };
    slice(0, std::true_type());
    _Pragma("unroll 1") for (int i = 1; i < slices(s); ++i) slice(i, std::false_type());
    MMVMAMBA_UNROLL
    for (int j = 0; j < kStep; ++j) {
      dt[j][0] = z[j / 2][j % 2];
      dt[j][1] = z[j / 2][2 + j % 2];
    }
  } else if constexpr (Shared<io_t>::kMma) {  // the same rows and fragments, without tensor cores
    const unsigned char* rows = shared.low_rows(slot);
    const uint32_t* weights = reinterpret_cast<const uint32_t*>(packed - me.run);
    MMVMAMBA_UNROLL
    for (int j = 0; j < kStep; ++j) {
      dt[j][0] = bias[0];
      dt[j][1] = bias[1];
    }
    for (int r = 0; r < s.rank; r += 2) {
      const uint32_t* word = weights + r / 16 * 256 + r % 8 * 2 + r / 8 % 2 * 2;
      Pair<float> w[2];
      MMVMAMBA_UNROLL
      for (int c = 0; c < 2; ++c) {
        const Pair<float> high = unpack<io_t>(word[c]), low = unpack<io_t>(word[128 + c]);
        w[c] = {{high.v[0] + low.v[0], high.v[1] + low.v[1]}};
      }
      MMVMAMBA_UNROLL
      for (int j = 0; j < kStep; ++j) {
        const Pair<float> low =
            unpack<io_t>(*reinterpret_cast<const uint32_t*>(rows + j * shared.row_bytes + r * 2));
        MMVMAMBA_UNROLL
        for (int c = 0; c < 2; ++c) dt[j][c] += w[c].v[0] * low.v[0] + w[c].v[1] * low.v[1];
      }
    }
  } else {
    const T* rows = reinterpret_cast<const T*>(shared.low_rows(slot)) + me.run * kStep;
    const T* weights = shared.template part<T>(shared.weight) + 2 * me.team;
    MMVMAMBA_UNROLL
    for (int j = 0; j < kStep; ++j) {
      dt[j][0] = bias[0];
      dt[j][1] = bias[1];
    }
    for (int r = 0; r < s.rank; ++r) {
      const Pair<T> w = *reinterpret_cast<const Pair<T>*>(weights + r * kTileChannels);
      T low[kStep];
      load_row(rows + r * kTilePositions, low);
      MMVMAMBA_UNROLL
      for (int j = 0; j < kStep; ++j) {
        dt[j][0] += w.v[0] * low[j];
        dt[j][1] += w.v[1] * low[j];
      }
    }
  }
}

// ---- the scan of a state: what happens to it over a lane's positions, a team's, a block's ----

// A state h leaves as decay h + add, for two channels.
template <typename T>
struct alignas(16) Effect {
  T decay[2], add[2];

  // That of `before`, if there is one, and then of this.
  __device__ __forceinline__ void follow(const Effect& before, bool exists) {
    MMVMAMBA_UNROLL
    for (int c = 0; c < 2; ++c) {
      add[c] += (exists ? decay[c] : T(0)) * before.add[c];
      decay[c] *= exists ? before.decay[c] : T(1);
    }
  }
  __device__ __forceinline__ Effect from_lane_before(int lanes) const {
    Effect e;
    MMVMAMBA_UNROLL
    for (int c = 0; c < 2; ++c) {
      e.decay[c] = shuffle_up(decay[c], lanes, kTeamLanes);
      e.add[c] = shuffle_up(add[c], lanes, kTeamLanes);
    }
    return e;
  }
};

// Turns each lane's effect into that of its team up to it. Returns that of the lanes before it.
template <typename T>
__device__ __forceinline__ Effect<T> scan_team(const Place& me, Effect<T>& effect) {
  MMVMAMBA_UNROLL
  for (int lanes = 1; lanes < kTeamLanes; lanes *= 2) {
    const Effect<T> before = effect.from_lane_before(lanes);
    effect.follow(before, me.run >= lanes);
  }
  Effect<T> before = effect.from_lane_before(1);
  if (me.run == 0) before = {{T(1), T(1)}, {T(0), T(0)}};
  return before;
}

}  // namespace mmvmamba
