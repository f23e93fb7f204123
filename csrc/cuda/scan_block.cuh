// What the forward and the backward of a block have in common. A block has a segment of the axis,
// in rounds of one tile for each warp, for each direction of the launch and each tile of its
// channels: warp w has tile w of a round, and the warps combine through shared memory what their
// tiles do to a state. The sum over directions stays in shared memory until the end.
#pragma once

#include <cuda_runtime.h>

#include "scan_shared_memory.h"
#include "scan_tile.cuh"

namespace mmvmamba {

// Scan: what is done with a tile, by scan_tile(), with what is left of a tile of channels, by
// finish_states(), and with the block's sum, by write_sums().
// kMap: a map with channels next to each other, an even number of them, and low-rank time steps:
// what ss2d_scan hands over. Else any strides, given time steps, constant B and C: selective_scan.
// kOne: there is one state.
// kSummary: only what happens to the states over each segment.
// kBack: tiles against the walk. The "state" that is scanned is then the gradient that flows back.
template <class Scan, class Args, typename io_t, bool kMap, bool kOne, bool kSummary, bool kBack>
struct BlockScan {
  using T = typename Accumulate<io_t>::type;

  const Args& a;
  const ScanPlan& s;
  const Shared<io_t> shared;
  Work work;
  Place me;
  int which = 0, channels = 0;      // the direction of the launch, the tile of channels
  int first_state = 0, states = 1;  // worked on at a time
  int turn = 0, step = 0;           // rounds, and states of rounds, that the block has begun

  __device__ __forceinline__ BlockScan(const Args& args, void* memory)
      : a(args),
        s(args.plan),
        shared{args.plan.shared, static_cast<unsigned char*>(memory)},
        work(args.plan, blockIdx.x) {}

  __device__ __forceinline__ Scan& scan() { return static_cast<Scan&>(*this); }

  __device__ __forceinline__ void run() {
    if constexpr (!kSummary) clear_sums();
    const int first = kSummary ? work.direction : 0;
    const int last = kSummary ? first + 1 : a.directions.count;
    for (which = first; which < last; ++which) {
      work.direction = a.directions.index[which];
      for (channels = 0; channels < channel_tiles(); ++channels) scan_channels();
    }
    if constexpr (!kSummary) scan().write_sums();
  }

  __device__ __forceinline__ void set_sources() {
    const int k = work.direction;
    Sources& to = *shared.template part<Sources>(0);
    to.x = a.x.template at<io_t>(work.sample, work.channel);
    to.rows = a.low.template row<io_t>(work.sample, work.group, k);
    const int64_t tile =
        (int64_t{k} * s.groups + work.group) * s.group_tiles + work.part * s.tiles + channels;
    to.weights = static_cast<const uint32_t*>(a.packed_weight) + tile * s.octets * kPackedWords;
    const int64_t states =
        (int64_t{work.sample} * s.directions + k) * s.axis_tiles * s.states * s.channels;
    to.states = a.states == nullptr ? nullptr : static_cast<T*>(a.states) + states + work.channel;
    if constexpr (kBack) {
      to.grad_y = a.grad_y_is_acc
                      ? static_cast<const void*>(a.grad_y.template at<T>(work.sample, work.channel))
                      : a.grad_y.template at<io_t>(work.sample, work.channel);
      to.grad_rows =
          a.grad_low.template row<T>(work.sample, work.group, k) + work.part * a.low_part;
    }
  }
  template <typename V>
  __device__ __forceinline__ V* source(V* Sources::* pointer) const {
    return in_global(shared.template part<Sources>(0)->*pointer);
  }

  // Tiles of 16 channels of this block.
  __device__ __forceinline__ int channel_tiles() const {
    return (work.channel_end - work.first_channel + kTileChannels - 1) / kTileChannels;
  }

  __device__ __forceinline__ void clear_sums() {
    const int count = channel_tiles() * shared.at.sum_bytes / int{sizeof(Pair<T>)};
    for (int i = threadIdx.x; i < count; i += blockDim.x) {
      shared.template part<Pair<T>>(shared.at.sum)[i] = {{T(0), T(0)}};
    }
  }

  // A direction of one tile of channels, up to kStateGroup states at a time.
  __device__ __forceinline__ void scan_channels() {
    work.set_tile(channels);
    me.at<kMap>(work.channels);
    __syncthreads();  // all have left the last tile
    if (threadIdx.x == 0) set_sources();
    set_constants();
    if (!kPositionRows<io_t> && (kMap || s.rank > 0)) {
      stage_weights(s, a.params.dt_weight, work, shared);
    }
    for (first_state = 0; first_state < (kOne ? 1 : s.states); first_state += kStateGroup) {
      states = kOne ? 1 : smaller(s.states - first_state, kStateGroup);
      if (first_state > 0) __syncthreads();
      start_states();
      __syncthreads();
      scan_segment();
      scan().finish_states();
    }
  }

  // The biases of time steps, in units of log2(e) and as the tensor cores begin with them, and A of
  // one state.
  __device__ __forceinline__ void set_constants() {
    const int i = static_cast<int>(threadIdx.x);
    if (i >= kTileChannels) return;
    const int at = work.direction * s.channels + work.channel + smaller(i, work.channels - 1);
    const T* biases = static_cast<const T*>(a.params.dt_bias);
    T* to = shared.template part<T>(Fixed<T>::kConstants);
    to[2 * i] = to[2 * i + 1] = kMap || biases != nullptr ? biases[at] * T(kLog2E) : T(0);
    if constexpr (kOne) to[2 * kTileChannels + i] = static_cast<const T*>(a.params.A)[at];
  }
  // A of a state.
  __device__ __forceinline__ void read_rates(int n, T (&rate)[2]) const {
    if constexpr (kOne) {
      const Pair<T> pair =
          shared.template part<Pair<T>>(Fixed<T>::kConstants)[2 * kTeams + me.team];
      rate[0] = pair.v[0];
      rate[1] = pair.v[1];
    } else {
      rate[0] = parameter(a.params.A, n, 0);
      rate[1] = parameter(a.params.A, n, 1);
    }
  }

  __device__ __forceinline__ const uint4* packed_weights() const {
    return static_cast<const uint4*>(source(&Sources::weights)) + me.lane;
  }

  __device__ __forceinline__ void scan_segment() {
    const bool reversed = is_reversed(a.directions.order[which]);
    const bool columns = along_columns(a.directions.order[which]);
    const int count = work.tiles;
    const bool fresh = channels == 0 || !s.keep_rows;
    _Pragma("unroll 1") for (int index = me.warp; index - me.warp < count; index += s.warps) {
      if (index >= count) {  // no tile of the last round
        for (int n = 0; n < states; ++n) sync_block();
        step += states;
        ++turn;
        return;
      }
      const Tile tile(s, work.first_tile + (reversed != kBack ? count - 1 - index : index),
                      reversed);
      const int slot = s.keep_rows ? index : me.warp;
      if (fresh || (!kOne && s.states > kStateGroup)) {
        sync_lanes();  // all lanes have left the last tile
        stage<io_t, kMap>(
            s, tile, work, columns, slot, me, shared,
            kMap || s.rank > 0 ? static_cast<const io_t*>(source(&Sources::rows)) : nullptr, a.B,
            a.C, first_state, states);
        sync_lanes();
      }
      scan().scan_tile(tile, slot, index == me.warp, index + 1 == count || me.warp + 1 == s.warps);
      ++turn;
    }
  }

  // The states before the segment, into the half of `carry` that the next round reads.
  __device__ __forceinline__ void start_states() {
    Pair<T>* carry = carry_at(turn);
    for (int i = threadIdx.x; i < states * kTeams; i += blockDim.x) {
      const int n = i / kTeams, team = i % kTeams;
      Pair<T> start = {{T(0), T(0)}};
      if (!kSummary && s.segments > 1) {
        const T* from = static_cast<const T*>(a.state) + segment_state(n);
        for (int c = 0; c < smaller(work.channels - 2 * team, 2); ++c)
          start.v[c] = from[2 * team + c];
      }
      carry[n * 2 * kTeams + team] = start;
      if (kSummary) carry[(n * 2 + 1) * kTeams + team] = {{T(1), T(1)}};
    }
  }

  // What the segment has done to the states.
  __device__ __forceinline__ void write_summary() {
    __syncthreads();
    if (me.warp > 0 || me.run > 0) return;
    const Pair<T>* carry = carry_at(turn) + me.team;
    for (int n = 0; n < states; ++n, carry += 2 * kTeams) {
      for (int c = 0; c < me.active; ++c) {
        const int64_t place = segment_state(n) + me.channel + c;
        static_cast<T*>(a.state)[place] = carry[0].v[c];
        static_cast<T*>(a.decay)[place] = carry[kTeams].v[c];
      }
    }
  }

  __device__ __forceinline__ Pair<T>* carry_at(int when) const {
    return shared.template part<Pair<T>>(shared.at.carry) + (when & 1) * states * 2 * kTeams;
  }
  // Where a state of the segment's first channel lies in `state` and `decay`.
  __device__ __forceinline__ int64_t segment_state(int n) const {
    return (((int64_t{work.sample} * s.directions + work.direction) * s.segments + work.segment) *
                s.states +
            first_state + n) *
               s.channels +
           work.channel;
  }
  // The saved state before a tile.
  __device__ __forceinline__ T* saved_state(const Tile& tile, int n) const {
    const int row =
        tile.first / kTilePositions * (kOne ? 1 : s.states) + (kOne ? 0 : first_state + n);
    return at(static_cast<T*>(source(&Sources::states)), row, s.channels) + me.channel;
  }
  __device__ __forceinline__ T parameter(const void* values, int n, int c) const {  // (K, C, S)
    return static_cast<const T*>(
        values)[(work.direction * s.channels + work.channel + me.channel + c * me.next) *
                    int64_t{s.states} +
                first_state + n];
  }

  // A lane's positions of a map, for its two channels.
  template <typename V>
  __device__ __forceinline__ void read_map(const MapView& map, const V* from, int slot,
                                           Held<V> (&to)[kStep]) {
    int32_t position[kStep];
    load_row(shared.positions(slot) + me.run * kStep, position);
    MMVMAMBA_UNROLL
    for (int j = 0; j < kStep; ++j) {
      const V* value = at(from, position[j], map.position);
      if constexpr (kMap) {
        to[j] = *reinterpret_cast<const Held<V>*>(value);
      } else {
        to[j] = Pair<V>{{value[0], value[me.next * map.channel]}};
      }
    }
  }
  // Where a lane's channels begin in a map, from those of the tile on.
  __device__ __forceinline__ int64_t channel_offset(const MapView& map) const {
    return me.channel * (kMap ? 1 : map.channel);
  }

  // Time steps of a lane's positions, zero beyond the end. `before` is called with each sum before
  // softplus.
  template <class Before>
  __device__ __forceinline__ void time_steps(const Tile& tile, int slot, T (&dt)[kStep][2],
                                             Before before) {
    const Values<T, 4> bias = shared.template part<Values<T, 4>>(Fixed<T>::kConstants)[me.team];
    if (kMap || s.rank > 0) {
      rank_product(s, slot, me, shared, packed_weights(), bias, dt);
    } else {
      Held<io_t> delta[kStep];
      read_map(a.delta, a.delta.template at<io_t>(work.sample, work.channel + me.channel), slot,
               delta);
      MMVMAMBA_UNROLL
      for (int j = 0; j < kStep; ++j) {
        MMVMAMBA_UNROLL
        for (int c = 0; c < 2; ++c) {
          dt[j][c] = delta[j][c] * T(kLog2E) + bias.v[2 * c];
        }
      }
    }
    if (kMap || s.softplus) {
      MMVMAMBA_UNROLL
      for (int j = 0; j < kStep; ++j) {
        before(j, dt[j]);
        dt[j][0] = softplus<io_t>(dt[j][0]);
        dt[j][1] = softplus<io_t>(dt[j][1]);
      }
    }
    if (__builtin_expect(tile.count < kTilePositions, 0)) {
      MMVMAMBA_UNROLL
      for (int j = 0; j < kStep; ++j) {
        if (!tile.has(me.run * kStep + j)) dt[j][0] = dt[j][1] = T(0);
      }
    }
  }

  // Decays at the lane's positions. Beyond the end nothing happens to a state, even if A is
  // infinite.
  __device__ __forceinline__ void decays(const Tile& tile, int n, const T (&dt)[kStep][2],
                                         T (&decay)[kStep][2]) const {
    T rate[2];
    read_rates(n, rate);
    MMVMAMBA_UNROLL
    for (int j = 0; j < kStep; ++j) {
      decay[j][0] = exp2_of(rate[0] * dt[j][0]);
      decay[j][1] = exp2_of(rate[1] * dt[j][1]);
    }
    if (__builtin_expect(tile.count < kTilePositions, 0)) {
      MMVMAMBA_UNROLL
      for (int j = 0; j < kStep; ++j) {
        if (!tile.has(me.run * kStep + j)) decay[j][0] = decay[j][1] = T(1);
      }
    }
  }

  // The state before this warp's tile, in `start`, and in a summary what the segment has done to
  // it. Each warp leaves what its tile does, and the last one what the next round starts from, in
  // halves that take turns: one barrier is enough.
  __device__ __forceinline__ void scan_block(int n, bool last, const Effect<T>& tile,
                                             T (&start)[2]) {
    const bool at_end = me.run == (kBack ? 0 : kTeamLanes - 1);  // whose effect is its team's
    Effect<T>* ends =
        shared.template part<Effect<T>>(shared.at.ends) + (step & 1) * s.warps * kTeams + me.team;
    ++step;
    if (at_end) ends[me.warp * kTeams] = tile;
    sync_block();
    if (kSummary && !last) return;
    const Pair<T>* from = carry_at(turn) + n * 2 * kTeams + me.team;
    Pair<T>* to = carry_at(turn + 1) + n * 2 * kTeams + me.team;
    Pair<T> h = *from, decay = {{T(1), T(1)}};
    if constexpr (kSummary) decay = from[kTeams];
    _Pragma("unroll 2") for (int w = 0; w < me.warp; ++w, ends += kTeams) {
      const Effect<T> end = *ends;
      MMVMAMBA_UNROLL
      for (int c = 0; c < 2; ++c) {
        h.v[c] = end.decay[c] * h.v[c] + end.add[c];
        if constexpr (kSummary) decay.v[c] *= end.decay[c];
      }
    }
    start[0] = h.v[0];
    start[1] = h.v[1];
    if (last && at_end) {
      MMVMAMBA_UNROLL
      for (int c = 0; c < 2; ++c) {
        h.v[c] = tile.decay[c] * h.v[c] + tile.add[c];
        decay.v[c] *= tile.decay[c];
      }
      *to = h;
      if constexpr (kSummary) to[kTeams] = decay;
    }
  }

  // Where the lane's sums of its positions lie.
  __device__ __forceinline__ unsigned char* lane_sums() const {
    return shared.memory + shared.at.sum + channels * shared.at.sum_bytes +
           me.team % 4 * int{sizeof(Pair<T>)};
  }
  __device__ __forceinline__ const int32_t* lane_places(int slot) const {
    return shared.places(slot) + me.team / 4 * kTilePositions + me.run * kStep;
  }

  // The block's sums to memory, with the skip connection of `map`: of x, or of y's gradient.
  template <typename V>
  __device__ __forceinline__ void write_sums(const MapView& map) {
    const bool columns = along_columns(a.directions.order[0]);
    const int first = work.first_tile * kTilePositions;
    const int count = smaller(s.length - first, s.segment_tiles * kTilePositions);
    for (channels = 0; channels < channel_tiles(); ++channels) {
      const int c = work.first_channel + channels * kTileChannels;
      const int active = smaller(work.channel_end - c, kTileChannels);
      T* skips =
          shared.template part<T>(shared.at.ends);  // of the sum over the launch's directions
      __syncthreads();
      if (static_cast<int>(threadIdx.x) < kTileChannels) skips[threadIdx.x] = skip_of(c, active);
      __syncthreads();
      const V* of_sample = map.template at<V>(work.sample, c);
      T* sums = a.sum.template at<T>(work.sample, c);
      io_t* out = a.out.template at<io_t>(work.sample, c);
      for (int i = threadIdx.x; i < count; i += blockDim.x) {
        const int axis = first + i, line = s.by_height(axis);
        const int p = s.segments > 1 && columns ? (axis - line * s.height) * s.width + line : axis;
        const V* from = at(of_sample, p, map.position);
        T* sum = at(sums, p, a.sum.position);
        io_t* to = at(out, p, a.out.position);
        const int32_t place = shared.at.sum + channels * shared.at.sum_bytes + place_of<T>(s, i, 0);
        if (kMap && a.wide && active == kTileChannels) {
          write_position<8>(place, active, skips, map, from, sum, to);
        } else {
          write_position<1>(place, active, skips, map, from, sum, to);
        }
      }
    }
  }

  // The skip connection of one of the tile's channels, for all directions of the launch.
  __device__ __forceinline__ T skip_of(int channel, int active) const {
    const T* D = static_cast<const T*>(a.params.D);
    T skip = T(0);
    for (int i = 0; D != nullptr && i < a.directions.count; ++i) {
      const int c = smaller(static_cast<int>(threadIdx.x), active - 1);
      skip += D[a.directions.index[i] * s.channels + channel + c];
    }
    return skip;
  }

  // A position of the tile's channels, kWidth at a time.
  template <int kWidth, typename V>
  __device__ __forceinline__ void write_position(int32_t place, int active, const T* skips,
                                                 const MapView& map, const V* from, T* sum,
                                                 io_t* out) {
    const bool narrow = a.directions.end && a.out.data != nullptr;
    MMVMAMBA_UNROLL
    for (int first = 0; first < kTileChannels; first += kWidth) {
      if (kWidth == 1 && first >= active) return;
      const Values<V, kWidth> u = *reinterpret_cast<const Values<V, kWidth>*>(
          from + first * (kWidth > 1 ? 1 : map.channel));
      auto* total =
          reinterpret_cast<Values<T, kWidth>*>(sum + first * (kWidth > 1 ? 1 : a.sum.channel));
      // Sums lie in rows of 128 bytes, within which the halves of 16 channels change places.
      constexpr int kHalf = kTileChannels / 2;
      Values<T, kWidth> y = *reinterpret_cast<const Values<T, kWidth>*>(
          shared.memory + (place ^ (first / kHalf * kHalf * int{sizeof(T)})) +
          first % kHalf * int{sizeof(T)});
      const Values<T, kWidth> skip = *reinterpret_cast<const Values<T, kWidth>*>(skips + first);
      MMVMAMBA_UNROLL
      for (int i = 0; i < kWidth; ++i) y.v[i] += skip.v[i] * static_cast<T>(u.v[i]);
      if (!a.directions.begin) {
        const Values<T, kWidth> before = *total;
        MMVMAMBA_UNROLL
        for (int i = 0; i < kWidth; ++i) y.v[i] += before.v[i];
      }
      if (narrow) {
        Values<io_t, kWidth> values;
        MMVMAMBA_UNROLL
        for (int i = 0; i < kWidth; ++i) values.v[i] = static_cast<io_t>(y.v[i]);
        *reinterpret_cast<Values<io_t, kWidth>*>(out + first * (kWidth > 1 ? 1 : a.out.channel)) =
            values;
      } else {
        *total = y;
      }
    }
  }
};

// ---- launches ----

template <typename io_t>
__global__ void pack_weight_kernel(const ScanCall args, int64_t count) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (index < count) pack_weight<io_t>(args, index);
}

// Once for each call.
template <typename io_t>
cudaError_t launch_pack_weight(const ScanCall& args, cudaStream_t stream) {
  if constexpr (kPositionRows<io_t>) {
    constexpr int kThreads = 64;
    const int64_t pieces = packed_weight_pieces(args.plan);
    if (args.pack_weights && pieces > 0) {
      pack_weight_kernel<io_t>
          <<<static_cast<unsigned>(pieces), kThreads, 0, stream>>>(args, pieces * kThreads);
    }
  }
  return cudaGetLastError();
}

template <bool kSummary, int kMostWarps, class Args>
cudaError_t launch_blocks(void (*kernel)(const Args), std::atomic<uint64_t>& raised,
                          const Args& args, cudaStream_t stream) {
  const ScanPlan& s = args.plan;
  const int64_t blocks = int64_t{s.batch} * s.segments * s.groups * s.group_parts *
                         (kSummary ? args.directions.count : 1);
  if (blocks > 0x7fffffff || s.warps > kMostWarps) return cudaErrorInvalidConfiguration;
  const cudaError_t status =
      raise_shared_memory_limit(reinterpret_cast<const void*>(kernel), raised);
  if (status != cudaSuccess) return status;
  const int64_t shared = s.shared.sum + (kSummary ? 0 : int64_t{s.tiles} * s.shared.sum_bytes);
  kernel<<<static_cast<unsigned>(blocks), static_cast<unsigned>(s.warps * 32),
           static_cast<size_t>(shared), stream>>>(args);
  return cudaGetLastError();
}

}  // namespace mmvmamba
