// What a warp does with its tile of 16 channels and 32 positions: the rows of proj that it needs,
// time steps, and what happens to a state over them.
//
//            position  0 ... 7   8 ... 15   16 ... 23   24 ... 31     in the order of the walk
//   channels  0, 1     lane  0   lane  1    lane  2     lane  3       "team" 0
//             2, 3     lane  4   lane  5    lane  6     lane  7       "team" 1
//              ...
//            14, 15    lane 28   lane 29    lane 30     lane 31       "team" 7
//
// A lane walks its 8 positions in registers for two channels at once. Its time steps are what a
// lane holds of the product of dt_weight (16 channels, 16 ranks) and the rows (16 ranks, 8
// positions) by the tensor cores, with channels and positions in a suitable order: row n is the
// first channel of team n, row 8 + n its second one, and column n of matrix j is position
// 8 (n / 2) + 2 j + n % 2. A team's lanes combine what their positions do to a state by shuffles.
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
// Several of them, read or written as one.
template <typename T, int kCount>
struct alignas(kCount > 1 ? 16 : sizeof(T)) Values {
  T v[kCount];
};
template <typename half_t>
__device__ __forceinline__ Pair<float> unpack(uint32_t word) {
  half_t low, high;
  low.x = static_cast<uint16_t>(word);
  high.x = static_cast<uint16_t>(word >> 16);
  return {{static_cast<float>(low), static_cast<float>(high)}};
}

// A pair in registers. Of 16-bit values it is a word, as the compiler would take them apart.
template <typename V>
struct Held {
  Pair<V> pair;
  Held() = default;
  __device__ __forceinline__ Held(Pair<V> value) : pair(value) {}
  __device__ __forceinline__ V operator[](int i) const { return pair.v[i]; }
  // The first `count` of them, zeros for the others.
  __device__ __forceinline__ Held first(int count) const {
    return Pair<V>{{count > 0 ? pair.v[0] : V(0), count > 1 ? pair.v[1] : V(0)}};
  }
};
template <typename half_t>
struct HeldHalf {
  uint32_t word;
  HeldHalf() = default;
  __device__ __forceinline__ HeldHalf(Pair<half_t> value)
      : word(uint32_t{value.v[0].x} | uint32_t{value.v[1].x} << 16) {}
  __device__ __forceinline__ HeldHalf(Pair<float> value)
      : word(pack<half_t>(value.v[0], value.v[1])) {}
  __device__ __forceinline__ float operator[](int i) const { return unpack<half_t>(word).v[i]; }
  __device__ __forceinline__ HeldHalf first(int count) const {
    HeldHalf kept;
    kept.word = count > 1 ? word : count > 0 ? word & 0xffff : 0;
    return kept;
  }
};
template <>
struct Held<torch::headeronly::Half> : HeldHalf<torch::headeronly::Half> {
  using HeldHalf::HeldHalf;
  __device__ __forceinline__ Held(HeldHalf value) : HeldHalf(value) {}
};
template <>
struct Held<torch::headeronly::BFloat16> : HeldHalf<torch::headeronly::BFloat16> {
  using HeldHalf::HeldHalf;
  __device__ __forceinline__ Held(HeldHalf value) : HeldHalf(value) {}
};

__device__ __forceinline__ float exp2_of(float x) { return exp2_approx(x); }
__device__ __forceinline__ double exp2_of(double x) { return ::exp2(x); }

__device__ __forceinline__ int smaller(int a, int b) { return a < b ? a : b; }

// The power of two that brings a number into [2^13, 2^14); 1 for infinity and NaN, and at most
// 2^113, which leaves room for a factor.
__device__ __forceinline__ float power_below(float x) {
  const int exponent = static_cast<int>(__float_as_uint(x) >> 23 & 0xff);
  return __uint_as_float((exponent == 255 ? 127 : smaller(267 - exponent, 240)) << 23);
}

__device__ __forceinline__ float inverse_of_power(float power) {
  return __uint_as_float(0x7f000000 - __float_as_uint(power));
}

// The element at `index` times `stride` elements: a product and a sum in one instruction.
template <typename V>
__device__ __forceinline__ V* at(V* from, int index, int stride) {
  using Byte = std::conditional_t<std::is_const_v<V>, const char, char>;
  return reinterpret_cast<V*>(reinterpret_cast<Byte*>(from) +
                              multiply_wide(index, stride * static_cast<int>(sizeof(V))));
}

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

// Slopes of softplus are kept in the I/O type. They are as small as time steps, so float16 takes
// them times this.
template <typename io_t>
constexpr float kSlopeScale = std::is_same_v<io_t, torch::headeronly::Half> ? 4096.f : 1.f;

// kSlopeScale times the derivative of softplus.
template <typename io_t>
__device__ __forceinline__ float slope_of(float v) {
  constexpr float kScale = 1 / kSlopeScale<io_t>;
  return rcp_approx(exp2_of(-v) * kScale + kScale);
}
template <typename io_t>
__device__ __forceinline__ double slope_of(double v) {
  return v > 20 * kLog2E ? 1.0 : 1 / (1 + ::exp2(-v));
}

// What a block works on: a sample, a part of the channels of a group and a segment of the axis;
// then a direction and a tile of the channels.
struct Work {
  int sample, group, part, segment;
  int first_channel, channel_end;  // of the block
  int first_tile, tiles;           // of the segment
  int direction;                   // at first of a summary, in the launch
  int channel, channels;           // of the tile: the first one, and how many
  int tile;                        // of channels, of all directions and groups

  // `index` counts parts of a group's channels fastest, then groups, segments, samples, directions.
  __device__ Work(const ScanPlan& s, int index) {
    const auto take = [&](const Divisor& by, int count) {
      const int quotient = by(index), rest = index - quotient * count;
      index = quotient;
      return rest;
    };
    part = take(s.by_parts, s.group_parts);
    group = take(s.by_groups, s.groups);
    segment = take(s.by_segments, s.segments);
    sample = take(s.by_batch, s.batch);
    direction = index;
    const int first = part * s.tiles * kTileChannels;
    first_channel = group * s.group_channels + first;
    channel_end =
        group * s.group_channels + smaller(s.group_channels, first + s.tiles * kTileChannels);
    first_tile = segment * s.segment_tiles;
    tiles = smaller(s.segment_tiles, s.axis_tiles - first_tile);
  }
  __device__ __forceinline__ void set_tile(const ScanPlan& s, int index) {
    channel = first_channel + index * kTileChannels;
    channels = smaller(channel_end - channel, kTileChannels);
    tile = (direction * s.groups + group) * s.group_tiles + part * s.tiles + index;
  }
};

// A lane's place: its two channels are `channel` and `channel + next` of the tile, and `active` of
// them are its own. Lanes beyond the block's channels compute the last pair once more, so that
// pairs stay aligned.
struct Place {
  int lane, warp, team, run;
  int channel, next, active;

  __device__ Place()
      : lane(static_cast<int>(threadIdx.x) % 32),
        warp(static_cast<int>(threadIdx.x) / 32),
        team(lane / kTeamLanes),
        run(lane % kTeamLanes) {}
  // kPairs: the number of channels is even.
  template <bool kPairs>
  __device__ __forceinline__ void at(int channels) {
    const int first = 2 * team;
    if constexpr (kPairs) {
      channel = first < channels ? first : channels - 2;
      next = 1;
      active = first < channels ? 2 : 0;
    } else {
      channel = first < channels ? first : channels - 2 + channels % 2;
      next = channel + 1 < channels ? 1 : 0;
      active = first < channels ? 1 + next : 0;
    }
  }
};

// A tile of positions along the axis, `count` of which exist, in the order of the walk.
struct Tile {
  static constexpr bool kInBlock = true;  // whose sum a block keeps
  int first, count;
  bool reversed;
  __device__ Tile(const ScanPlan& s, int index, bool reversed)
      : first(index * kTilePositions),
        count(smaller(s.length - first, kTilePositions)),
        reversed(reversed) {}
  __device__ int index(int i) const { return reversed ? kTilePositions - 1 - i : i; }
  __device__ int position(int i) const { return first + index(i); }
  __device__ bool has(int i) const { return index(i) < count; }
  __device__ bool is_whole() const { return count >= kTilePositions; }
};

// Eight positions from each of four tiles. A lane scans its tile in four such steps.
struct Steps {
  static constexpr bool kInBlock = false;
  int step, first, length;  // along the axis
  bool reversed, whole;
  __device__ Steps(const ScanPlan& s, int index, int step_of_walk, bool reversed)
      : step(reversed ? kTeamLanes - 1 - step_of_walk : step_of_walk),
        first(index * kTilePositions + step * kStep),
        length(s.length),
        reversed(reversed),
        whole((index + kTeamLanes) * kTilePositions <= length) {}
  __device__ int position(int i) const {
    const int run = i >> 3, j = i & 7;  // of kStep; the compiler does not know that i >= 0
    return first + run * kTilePositions + (reversed ? kStep - 1 - j : j);
  }
  __device__ bool has(int i) const { return position(i) < length; }
  __device__ bool is_whole() const { return whole; }
};

// 16 bytes at a time.
template <typename T, int kCount>
__device__ __forceinline__ void load_row(const T* from, T (&to)[kCount]) {
  struct alignas(16) Piece {
    T v[16 / sizeof(T)];
  };
  MMVMAMBA_UNROLL
  for (int i = 0; i < kCount; i += 16 / static_cast<int>(sizeof(T))) {
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

// A block's shared memory. `own` is the part for one tile of channels: that of the block, or of the
// warp if each warp has its own tile.
template <typename io_t>
struct Shared {
  using T = typename Accumulate<io_t>::type;
  const SharedLayout& at;
  unsigned char *memory, *own;

  template <typename V>
  __device__ __forceinline__ V* part(int offset) const {
    return reinterpret_cast<V*>(memory + offset);
  }
  __device__ __forceinline__ Sources& sources() const { return *reinterpret_cast<Sources*>(own); }
  template <typename V>
  __device__ __forceinline__ V* constants() const {
    return reinterpret_cast<V*>(own + Fixed<T>::kConstants);
  }
  __device__ __forceinline__ T* weights() const { return reinterpret_cast<T*>(own + at.weight); }
  __device__ __forceinline__ unsigned char* slot(int index) const {
    return memory + Fixed<T>::kSlots + index * at.slot_bytes;
  }
  __device__ __forceinline__ int32_t* positions(int index) const {
    return reinterpret_cast<int32_t*>(slot(index));
  }
  __device__ __forceinline__ int32_t* places(int index) const {
    return reinterpret_cast<int32_t*>(slot(index) + Fixed<T>::kPlaces);
  }
  __device__ __forceinline__ T* values(int index) const {
    return reinterpret_cast<T*>(slot(index) + Fixed<T>::kValues);
  }
  // The rows of a tile: of ranks or, for tensor cores, of positions. Eight that `ldmatrix` reads at
  // once, two of each lane of a team, follow each other, an odd number of 16 bytes apart.
  __device__ __forceinline__ unsigned char* low_rows(int index) const {
    return slot(index) + at.low;
  }
  static __device__ __forceinline__ int row_of_position(int i) {
    return i % kStep / 2 * kTeams + i / kStep * 2 + i % 2;
  }
};

// The low ranks of a position. In half precision a row of eights is padded with zeros: what follows
// in memory, B and C, may be infinite, which zero weights would not hide.
template <typename io_t>
__device__ __forceinline__ void stage_low(const ScanPlan& s, const io_t* from, int slot,
                                          const Place& me, const Shared<io_t>& shared) {
  using T = typename Accumulate<io_t>::type;
  if constexpr (kPositionRows<io_t>) {
    unsigned char* to =
        shared.low_rows(slot) + Shared<io_t>::row_of_position(me.lane) * shared.at.row_bytes;
    uint4* piece = reinterpret_cast<uint4*>(to);
    const auto copy = [&](auto read) {
      _Pragma("unroll 1") for (int i = 0; i < s.octets - 1; ++i) piece[i] = read(i);
      uint4 last = read(s.octets - 1);
      last.x &= s.tail[0];
      last.y &= s.tail[1];
      last.z &= s.tail[2];
      last.w &= s.tail[3];
      piece[s.octets - 1] = last;
    };
    if (s.row_pieces) {
      copy([&](int i) { return reinterpret_cast<const uint4*>(from)[i]; });
    } else if (s.row_words) {
      const uint32_t* word = reinterpret_cast<const uint32_t*>(from);
      const int words = (s.rank + 1) / 2;
      copy([&](int i) {
        const auto at = [&](int j) { return 4 * i + j < words ? word[4 * i + j] : 0; };
        return make_uint4(at(0), at(1), at(2), at(3));
      });
    } else {
      io_t* low = reinterpret_cast<io_t*>(to);
      _Pragma("unroll 1") for (int r = 0; r < 8 * s.octets; ++r) low[r] =
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
template <typename io_t, bool kMap, class Positions>
__device__ __forceinline__ void stage(const ScanPlan& s, const Positions& tile, const Work& work,
                                      bool columns, int slot, const Place& me,
                                      const Shared<io_t>& shared, const io_t* rows,
                                      const RowView& B, const RowView& C, int first, int count) {
  using T = typename Accumulate<io_t>::type;
  // Positions beyond the end repeat the last one, but keep a separate place for their sums.
  const bool exists = tile.has(me.lane);
  const int position = tile.position(me.lane), a = exists ? position : s.length - 1;
  const int line = s.by_height(a), p = columns ? (a - line * s.height) * s.width + line : a;
  shared.positions(slot)[me.lane] = p;
  if constexpr (Positions::kInBlock) {
    const int in_segment = position - work.first_tile * kTilePositions;
    const int32_t place = place_of<T>(s, exists && s.segments == 1 ? p : in_segment, 0);
    shared.places(slot)[me.lane] = place;
    shared.places(slot)[kTilePositions + me.lane] = place ^ (kTileChannels / 2 * int{sizeof(T)});
  }
  const io_t* row = kMap || s.rank > 0 ? at(rows, p, s.row) : nullptr;
  if (kMap || s.rank > 0) stage_low<io_t>(s, row, slot, me, shared);
  T* to = shared.values(slot) + me.lane;
  const io_t *b, *c;
  if constexpr (kMap) {
    b = row + s.rank + first;
    c = b + s.states;
  } else {
    b = at(B.row<io_t>(work.sample, work.group, work.direction), p, B.position) +
        int64_t{first} * B.item;
    c = at(C.row<io_t>(work.sample, work.group, work.direction), p, C.position) +
        int64_t{first} * C.item;
  }
  _Pragma("unroll 1") for (int n = 0; n < count; ++n, to += 2 * kTilePositions) {
    const T of_B =
        kMap || B.data != nullptr ? static_cast<T>(b[kMap ? n : n * int64_t{B.item}]) : T(1);
    const T of_C =
        kMap || C.data != nullptr ? static_cast<T>(c[kMap ? n : n * int64_t{C.item}]) : T(1);
    // Zero beyond the end, even if the last position's are not finite.
    to[0] = exists ? of_B : T(0);
    to[kTilePositions] = exists ? of_C * T(kLn2) : T(0);
  }
}

// dt_weight of 16 channels and 8 ranks for the tensor cores, in units of log2(e). As the left
// factor of the time steps it has the weights rounded to the I/O type and, in place of 8 more
// ranks, their rounding errors; as the right factor of the gradient of the ranks the rounded
// weights. A thread has three of the words.
template <typename io_t>
__device__ __forceinline__ void pack_weight(const ScanCall& a, int64_t index) {
  const ScanPlan& s = a.plan;
  const int lane = static_cast<int>(index % 32), half = static_cast<int>(index / 32 % 2);
  const int64_t piece = index / 64, tile = piece / s.octets;  // of 16 channels, of all directions
  const int group = static_cast<int>(tile / s.group_tiles % s.groups);
  const int64_t k = tile / s.group_tiles / s.groups;
  // float16 holds no more; the error of rounding a larger one would be infinite.
  const float most = std::is_same_v<io_t, torch::headeronly::Half> ? 65504.f : 3.3e38f;
  const auto weight = [&](int row,
                          int r) {  // the first channels of the teams, then the second ones
    const int in_group =
        static_cast<int>(tile % s.group_tiles) * kTileChannels + row % 8 * 2 + row / 8;
    r += static_cast<int>(piece % s.octets) * 8;
    if (in_group >= s.group_channels || r >= s.rank) return 0.f;
    const float w = static_cast<const float*>(
        a.params.dt_weight)[(k * s.channels + group * s.group_channels + in_group) * s.rank + r];
    const float scaled = w * static_cast<float>(kLog2E);
    return fabsf(scaled) <= 3.3e38f ? fminf(fmaxf(scaled, -most), most) : scaled;
  };
  uint32_t* to = static_cast<uint32_t*>(a.packed_weight) + piece * kPackedWords;
  const int i = lane / 4, j = lane % 4 * 2;
  const float u = weight(half * 8 + i, j), v = weight(half * 8 + i, j + 1);
  const uint32_t high = pack<io_t>(u, v);
  const Pair<float> rounded = unpack<io_t>(high);
  to[lane * 4 + half] = high;
  to[lane * 4 + 2 + half] = pack<io_t>(u - rounded.v[0], v - rounded.v[1]);
  to[128 + lane * 2 + half] = pack<io_t>(weight(half * 8 + j, i), weight(half * 8 + j + 1, i));
}

// dt_weight of 16 channels in shared memory, in units of log2(e), by threads `index` to `index` +
// `threads`, where it is not packed.
template <typename io_t>
__device__ __forceinline__ void stage_weights(const ScanPlan& s, const void* dt_weight,
                                              const Work& work, const Shared<io_t>& shared,
                                              int index, int threads) {
  using T = typename Accumulate<io_t>::type;
  const T* from = static_cast<const T*>(dt_weight) +
                  (int64_t{work.direction} * s.channels + work.channel) * s.rank;
  for (int i = index; i < s.rank * kTileChannels; i += threads) {
    const int c = smaller(i % kTileChannels, work.channels - 1);
    shared.weights()[i] = from[int64_t{c} * s.rank + i / kTileChannels] * T(kLog2E);  // (C, R)
  }
}

// A rank of the lane's channels and positions, where there are no tensor cores: the rows are the
// same, and the weights those that are packed for them.
template <typename io_t, typename T>
__device__ __forceinline__ void read_rank(int slot, int r, const Place& me,
                                          const Shared<io_t>& shared, const void* packed,
                                          T (&weight)[2], T (&low)[kStep]) {
  if constexpr (kPositionRows<io_t>) {
    // The words of two ranks: of the first and the second channel, and their rounding errors.
    const uint32_t* word = static_cast<const uint32_t*>(packed) + r / 8 * kPackedWords +
                           (me.team * kTeamLanes + r % 8 / 2) * 4;
    const unsigned char* rows = shared.low_rows(slot);
    MMVMAMBA_UNROLL
    for (int c = 0; c < 2; ++c) {
      weight[c] = unpack<io_t>(word[c]).v[r % 2] + unpack<io_t>(word[2 + c]).v[r % 2];
    }
    MMVMAMBA_UNROLL
    for (int j = 0; j < kStep; ++j) {
      low[j] = static_cast<T>(reinterpret_cast<const io_t*>(
          rows + Shared<io_t>::row_of_position(me.run * kStep + j) * shared.at.row_bytes)[r]);
    }
  } else {
    const Pair<T> w =
        *reinterpret_cast<const Pair<T>*>(shared.weights() + r * kTileChannels + 2 * me.team);
    weight[0] = w.v[0];
    weight[1] = w.v[1];
    load_row(
        reinterpret_cast<const T*>(shared.low_rows(slot)) + r * kTilePositions + me.run * kStep,
        low);
  }
}

// Time steps before softplus of a lane's positions, for its two channels, from their biases on.
template <typename io_t, typename T>
__device__ __forceinline__ void rank_product(const ScanPlan& s, int slot, const Place& me,
                                             const Shared<io_t>& shared, const uint4* packed,
                                             const Values<T, 4>& bias, T (&dt)[kStep][2]) {
  if constexpr (kHasMma<io_t>) {
    // Eight ranks at a time, which both the weights and their errors are multiplied by: each matrix
    // is loaded to two registers side by side.
    const unsigned char* rows =
        shared.low_rows(slot) + (me.lane / 16 * kTeams + me.lane % 8) * shared.at.row_bytes;
    float z[4][4];
    const auto multiply = [&](int i, auto first) {
      uint32_t b[2][4];
      ldmatrix_x4(b[0], rows + i * 16);
      ldmatrix_x4(b[1], rows + 2 * kTeams * shared.at.row_bytes + i * 16);
      const uint4 w = packed[i * (kPackedWords / 4)];
      MMVMAMBA_UNROLL
      for (int j = 0; j < 4; ++j) {
        const uint32_t (&column)[2] = reinterpret_cast<const uint32_t (&)[2]>(b[j / 2][j % 2 * 2]);
        if constexpr (decltype(first)::value) {
          mma_16x8x16<io_t>(z[j], {w.x, w.y, w.z, w.w}, column, bias.v);
        } else {
          mma_16x8x16<io_t>(z[j], {w.x, w.y, w.z, w.w}, column, z[j]);
        }
      }
    };
    multiply(0, std::true_type());
    int i = 1;
    _Pragma("unroll 1") for (; i + 1 < s.octets; i += 2) {
      multiply(i, std::false_type());
      multiply(i + 1, std::false_type());
    }
    _Pragma("unroll 1") for (; i < s.octets; ++i) multiply(i, std::false_type());
    MMVMAMBA_UNROLL
    for (int j = 0; j < kStep; ++j) {
      dt[j][0] = z[j / 2][j % 2];
      dt[j][1] = z[j / 2][2 + j % 2];
    }
  } else {
    MMVMAMBA_UNROLL
    for (int j = 0; j < kStep; ++j) {
      dt[j][0] = bias.v[0];
      dt[j][1] = bias.v[2];
    }
    for (int r = 0; r < s.rank; ++r) {
      T w[2], low[kStep];
      read_rank(slot, r, me, shared, packed - me.lane, w, low);
      MMVMAMBA_UNROLL
      for (int j = 0; j < kStep; ++j) {
        dt[j][0] += w[0] * low[j];
        dt[j][1] += w[1] * low[j];
      }
    }
  }
}

// ---- what happens to a state over a lane's positions, and over its team's ----

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
  // That of the lane so many runs before in the scan, which goes with or against the walk.
  template <bool kBack>
  __device__ __forceinline__ Effect from_run_before(int runs) const {
    const auto take = [&](T v) {
      return kBack ? shuffle_down(v, runs, kTeamLanes) : shuffle_up(v, runs, kTeamLanes);
    };
    return {{take(decay[0]), take(decay[1])}, {take(add[0]), take(add[1])}};
  }
};

// Turns each lane's effect into that of its team up to it. Returns that of the lanes before it.
template <bool kBack, typename T>
__device__ __forceinline__ Effect<T> scan_team(const Place& me, Effect<T>& effect) {
  const int run = kBack ? kTeamLanes - 1 - me.run : me.run;
  MMVMAMBA_UNROLL
  for (int runs = 1; runs < kTeamLanes; runs *= 2) {
    const Effect<T> before = effect.template from_run_before<kBack>(runs);
    effect.follow(before, run >= runs);
  }
  Effect<T> before = effect.template from_run_before<kBack>(1);
  if (run == 0) before = {{T(1), T(1)}, {T(0), T(0)}};
  return before;
}

// The sum of a value over the lanes of a team.
template <typename T>
__device__ __forceinline__ T sum_of_team(T value) {
  value += shuffle_xor(value, 1);
  return value + shuffle_xor(value, 2);
}

// Sums over the teams of a value for each of a lane's positions: a lane gets that of the position
// of its eight that has its team's number.
template <typename T>
__device__ __forceinline__ T sum_over_teams(const Place& me, T (&values)[kStep]) {
  MMVMAMBA_UNROLL
  for (int half = kStep / 2; half > 0; half /= 2) {
    const bool upper = me.team & half;
    MMVMAMBA_UNROLL
    for (int i = 0; i < half; ++i) {
      const T other = shuffle_xor(upper ? values[i] : values[i + half], half * kTeamLanes);
      values[i] = (upper ? values[i + half] : values[i]) + other;
    }
  }
  return values[0];
}
}  // namespace mmvmamba
