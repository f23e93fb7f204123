// The forward of a block: its segment of the axis, in rounds of one tile for each warp, for each
// direction of the launch and each tile of its channels. The sum over directions stays in shared
// memory until the end.
#pragma once

#include "scan_shared_memory.h"
#include "scan_tile.cuh"

namespace mmvmamba {

// kMap: a map with channels next to each other, an even number of them, and low-rank time steps:
// what ss2d_scan hands over. Else any strides, given time steps, constant B and C: selective_scan.
// kSummary: only what happens to the states over each segment.
// kOne: there is one state.
template <typename io_t, bool kMap, bool kOne, bool kSummary>
struct ForwardScan {
  using T = typename Accumulate<io_t>::type;

  const ScanForward& a;
  const ScanPlan& s;
  const Work work;
  const Shared<io_t> shared;
  Place me;
  int which = 0, k = 0;             // the direction in the launch and in the op
  int first_state = 0, states = 1;  // worked on at a time
  T rate[2], bias[2];               // of the time steps, in units of log2(e)
  int channels = 0;                 // the tile of channels
  int turn = 0, step = 0;           // rounds, and states of rounds, that the block has begun

  __device__ __forceinline__ ForwardScan(const ScanForward& args, void* memory)
      : a(args), s(args.plan), work(args.plan, blockIdx.x), shared(args.plan, memory) {}

  __device__ __forceinline__ void run() {
    if constexpr (!kSummary) clear_sums();
    const int first = kSummary ? work.direction : 0;
    const int last = kSummary ? first + 1 : a.directions.count;
    for (which = first; which < last; ++which) {
      k = a.directions.index[which];
      for (channels = 0; channels < channel_tiles(); ++channels) scan_channels();
    }
    if constexpr (!kSummary) write_sums();
  }

  // Tiles of 16 channels of this block, and of 32 positions of its segment.
  __device__ __forceinline__ int channel_tiles() const {
    return (work.channel_end - work.channel + kTileChannels - 1) / kTileChannels;
  }
  __device__ __forceinline__ int position_tiles() const {
    const int all = static_cast<int>((s.length + kTilePositions - 1) / kTilePositions);
    return smaller(s.segment_tiles, all - work.segment * s.segment_tiles);
  }

  __device__ __forceinline__ void clear_sums() {
    const int count =
        channel_tiles() * static_cast<int>(Shared<io_t>::sum_bytes(s) / sizeof(Pair<T>));
    for (int i = threadIdx.x; i < count; i += blockDim.x) {
      shared.template part<Pair<T>>(shared.sum)[i] = {{T(0), T(0)}};
    }
  }

  // A direction of one tile of channels, up to kStateGroup states at a time.
  __device__ __forceinline__ void scan_channels() {
    me.at(work, channels);
    __syncthreads();  // all have left the last tile
    const int64_t tile =
        (int64_t{k} * (s.channels / s.group_channels) + work.group) * group_tiles(s) +
        work.part * s.tiles + channels;
    if (threadIdx.x == 0) {
      *shared.template part<Sources>(shared.sources) = {
          a.x.template at<io_t>(work.sample, work.channel),
          a.low.template row<io_t>(work.sample, work.group, k),
          static_cast<const uint4*>(a.packed_weight) + tile * slices(s) * 64};
    }
    if (!Shared<io_t>::kMma && (kMap || s.rank > 0)) {
      stage_weights(s, a.params.dt_weight, k, work, channels, shared);
    }
    MMVMAMBA_UNROLL
    for (int c = 0; c < 2; ++c) {
      const T* biases = static_cast<const T*>(a.params.dt_bias);
      bias[c] = kMap || biases != nullptr
                    ? biases[k * s.channels + me.channel + c * me.next] * T(kLog2E)
                    : T(0);
    }
    for (first_state = 0; first_state < (kOne ? 1 : s.states); first_state += kStateGroup) {
      states = kOne ? 1 : smaller(s.states - first_state, kStateGroup);
      if (first_state > 0) __syncthreads();
      start_states();
      __syncthreads();
      scan_segment();
      finish_states();
    }
  }

  __device__ __forceinline__ void scan_segment() {
    const bool reversed = is_reversed(a.directions.order[which]);
    const bool columns = along_columns(a.directions.order[which]);
    const int count = position_tiles();
    const bool keep = s.tiles > 1;  // rows, for all of the block's channels
    const bool fresh = !keep || channels == 0;
    if constexpr (kOne) {
      rate[0] = parameter(a.params.A, 0, 0);
      rate[1] = parameter(a.params.A, 0, 1);
    }
    _Pragma("unroll 1") for (int index = me.warp; index - me.warp < count; index += s.warps) {
      const bool busy = index < count;
      const Tile tile(s, work.segment * s.segment_tiles + (reversed ? count - 1 - index : index),
                      reversed);
      const int slot = keep ? index : me.warp;
      if (busy && (fresh || s.states > kStateGroup)) {
        sync_lanes();  // all lanes have left the last tile
        const io_t* rows =
            static_cast<const io_t*>(shared.template part<Sources>(shared.sources)->rows);
        stage<io_t, kMap>(s, tile, work, columns, slot, me, shared, rows, a.B, a.C, k, first_state,
                          states);
        sync_lanes();
      }
      scan_tile(tile, slot, busy, index + 1 == count || me.warp + 1 == s.warps);
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
        Place other = me;
        other.team = team;
        other.at(work, channels);
        const T* from = static_cast<const T*>(a.state) + state_at(s.segments, work.segment, n, 0);
        start = {{from[other.channel], from[other.channel + other.next]}};
      }
      carry[n * 2 * kTeams + team] = start;
      if (kSummary) carry[(n * 2 + 1) * kTeams + team] = {{T(1), T(1)}};
    }
  }

  // What the segment has done to the states, or the states at the end of the walk.
  __device__ __forceinline__ void finish_states() {
    const bool end = !kMap && a.last_state != nullptr && work.segment + 1 == s.segments;
    if (!kSummary && !end) return;
    __syncthreads();
    if (me.warp > 0 || me.run > 0) return;
    const Pair<T>* carry = carry_at(turn) + me.team;
    for (int n = 0; n < states; ++n, carry += 2 * kTeams) {
      for (int c = 0; c < me.active; ++c) {
        if (kSummary) {
          const int64_t place = state_at(s.segments, work.segment, n, me.channel + c);
          static_cast<T*>(a.state)[place] = carry[0].v[c];
          static_cast<T*>(a.decay)[place] = carry[kTeams].v[c];
        } else {
          static_cast<T*>(
              a.last_state)[(int64_t{work.sample} * s.channels + me.channel + c) * s.states +
                            first_state + n] = carry[0].v[c] * T(kLn2);
        }
      }
    }
  }

  __device__ __forceinline__ Pair<T>* carry_at(int when) const {
    return shared.template part<Pair<T>>(shared.carry) + (when & 1) * states * 2 * kTeams;
  }
  __device__ __forceinline__ int64_t state_at(int64_t count, int64_t index, int n,
                                              int64_t channel) const {
    return (((int64_t{work.sample} * s.directions + k) * count + index) * s.states + first_state +
            n) *
               s.channels +
           channel;
  }

  __device__ __forceinline__ void scan_tile(const Tile& tile, int slot, bool busy, bool last) {
    T dt[kStep][2];
    Pair<io_t> u[kStep];
    if (busy) {
      const io_t* x = static_cast<const io_t*>(shared.template part<Sources>(shared.sources)->x);
      read_map(a.x, x + (me.channel - work.channel) * (kMap ? 1 : a.x.channel), slot, u);
      time_steps(tile, slot, dt);
    }
    if constexpr (kOne) {
      scan_state(tile, 0, slot, busy, last, dt, u);
    } else {
      _Pragma("unroll 1") for (int n = 0; n < states; ++n) {
        MMVMAMBA_UNROLL
        for (int c = 0; c < 2; ++c) rate[c] = parameter(a.params.A, n, c);
        scan_state(tile, n, slot, busy, last, dt, u);
      }
    }
  }

  // A lane's positions of a map, for its two channels.
  __device__ __forceinline__ void read_map(const MapView& map, const io_t* from, int slot,
                                           Pair<io_t> (&to)[kStep]) {
    int32_t position[kStep];
    load_row(
        shared.template part<int32_t>(shared.position) + slot * kTilePositions + me.run * kStep,
        position);
    MMVMAMBA_UNROLL
    for (int j = 0; j < kStep; ++j) {
      const io_t* value = at(from, position[j], map.position);
      if constexpr (kMap) {
        to[j] = *reinterpret_cast<const Pair<io_t>*>(value);
      } else {
        to[j] = {{value[0], value[me.next * map.channel]}};
      }
    }
  }

  __device__ __forceinline__ void time_steps(const Tile& tile, int slot, T (&dt)[kStep][2]) {
    if (kMap || s.rank > 0) {
      const Sources* sources = shared.template part<Sources>(shared.sources);
      const uint4* weights = static_cast<const uint4*>(sources->weights) + me.lane;
      rank_product(s, slot, me, shared, weights, bias, dt);
    } else {
      Pair<io_t> delta[kStep];
      read_map(a.delta, a.delta.template at<io_t>(work.sample, me.channel), slot, delta);
      MMVMAMBA_UNROLL
      for (int j = 0; j < kStep; ++j) {
        MMVMAMBA_UNROLL
        for (int c = 0; c < 2; ++c) {
          dt[j][c] = static_cast<T>(delta[j].v[c]) * T(kLog2E) + bias[c];
        }
      }
    }
    if (kMap || s.softplus) {
      MMVMAMBA_UNROLL
      for (int j = 0; j < kStep; ++j) {
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

  // One state over a tile: first what the tile does to it, then, from where the warps before have
  // left it, its values.
  __device__ __forceinline__ void scan_state(const Tile& tile, int n, int slot, bool busy,
                                             bool last, const T (&dt)[kStep][2],
                                             const Pair<io_t> (&u)[kStep]) {
    const T* values = shared.tile_values(slot) + n * 2 * kTilePositions + me.run * kStep;
    T decay[kStep][2], add[kStep][2];
    Effect<T> effect, before;
    T h[2];
    if (busy) {
      T B[kStep];
      load_row(values, B);
      MMVMAMBA_UNROLL
      for (int j = 0; j < kStep; ++j) {
        MMVMAMBA_UNROLL
        for (int c = 0; c < 2; ++c) {
          decay[j][c] = exp2_of(rate[c] * dt[j][c]);
          add[j][c] = dt[j][c] * static_cast<T>(u[j].v[c]) * B[j];
        }
      }
      if (!kMap && a.params.B != nullptr) {
        MMVMAMBA_UNROLL
        for (int c = 0; c < 2; ++c) {
          const T b = parameter(a.params.B, n, c);
          MMVMAMBA_UNROLL
          for (int j = 0; j < kStep; ++j) add[j][c] *= b;
        }
      }
      effect = {{decay[0][0], decay[0][1]}, {add[0][0], add[0][1]}};
      MMVMAMBA_UNROLL
      for (int j = 1; j < kStep; ++j) {
        MMVMAMBA_UNROLL
        for (int c = 0; c < 2; ++c) {
          effect.add[c] = decay[j][c] * effect.add[c] + add[j][c];
          effect.decay[c] *= decay[j][c];
        }
      }
      before = scan_team(me, effect);
    }
    scan_block(n, busy, last, effect, h);
    if constexpr (!kSummary) {
      if (!busy) return;
      if (a.states != nullptr) save_state(tile, n, h);
      int32_t place[kStep];
      load_row(shared.template part<int32_t>(shared.place) +
                   (slot * 2 + me.team / 4) * kTilePositions + me.run * kStep,
               place);
      unsigned char* sums = shared.memory + shared.sum +
                            channels * static_cast<int>(Shared<io_t>::sum_bytes(s)) +
                            me.team % 4 * int{sizeof(Pair<T>)};
      T C[kStep], out[2] = {T(1), T(1)};
      load_row(values + kTilePositions, C);
      MMVMAMBA_UNROLL
      for (int c = 0; c < 2; ++c) {
        h[c] = before.decay[c] * h[c] + before.add[c];
        if (!kMap && a.params.C != nullptr) out[c] = parameter(a.params.C, n, c);
      }
      // Four loads go out before a store, which might alias.
      MMVMAMBA_UNROLL
      for (int first = 0; first < kStep; first += 4) {
        Pair<T> y[4];
        MMVMAMBA_UNROLL
        for (int j = 0; j < 4; ++j)
          y[j] = *reinterpret_cast<const Pair<T>*>(sums + place[first + j]);
        MMVMAMBA_UNROLL
        for (int i = 0; i < 4; ++i) {
          const int j = first + i;
          MMVMAMBA_UNROLL
          for (int c = 0; c < 2; ++c) {
            h[c] = decay[j][c] * h[c] + add[j][c];
            y[i].v[c] += kMap ? C[j] * h[c] : C[j] * out[c] * h[c];
          }
          *reinterpret_cast<Pair<T>*>(sums + place[j]) = y[i];
        }
      }
    }
  }
  __device__ __forceinline__ T parameter(const void* values, int n, int c) const {  // (K, C, S)
    return static_cast<const T*>(
        values)[(k * s.channels + me.channel + c * me.next) * int64_t{kOne ? 1 : s.states} +
                first_state + n];
  }

  // The state before this warp's tile, in `start`, and in a summary what the segment has done to
  // it. Each warp leaves what its tile does, and the last one what the next round starts from, in
  // halves that take turns: one barrier is enough.
  __device__ __forceinline__ void scan_block(int n, bool busy, bool last, const Effect<T>& tile,
                                             T (&start)[2]) {
    Effect<T>* ends =
        shared.template part<Effect<T>>(shared.ends) + (step & 1) * s.warps * kTeams + me.team;
    ++step;
    if (busy && me.run == kTeamLanes - 1) ends[me.warp * kTeams] = tile;
    __syncthreads();
    if (!busy || (kSummary && !last)) return;
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
    if (last && me.run == kTeamLanes - 1) {
      MMVMAMBA_UNROLL
      for (int c = 0; c < 2; ++c) {
        h.v[c] = tile.decay[c] * h.v[c] + tile.add[c];
        decay.v[c] *= tile.decay[c];
      }
      *to = h;
      if constexpr (kSummary) to[kTeams] = decay;
    }
  }

  // The state before a chunk, for the backward, in natural units. The first of its two tiles in the
  // order of the walk has it.
  __device__ __forceinline__ void save_state(const Tile& tile, int n, const T (&h)[2]) {
    const bool upper = tile.first % kChunk != 0;
    const bool alone = !upper && tile.first + kTilePositions >= s.length;
    if (me.run > 0 || (tile.reversed ? !upper && !alone : upper)) return;
    T* to = static_cast<T*>(a.states) + state_at(s.chunks, tile.first / int{kChunk}, n, me.channel);
    if (me.active > 0) to[0] = h[0] * T(kLn2);
    if (me.active > 1) to[1] = h[1] * T(kLn2);
  }

  // The block's sums to memory.
  __device__ __forceinline__ void write_sums() {
    const bool columns = along_columns(a.directions.order[0]);
    const int first = work.segment * s.segment_tiles * kTilePositions;
    const int count = smaller(s.length - first, s.segment_tiles * kTilePositions);
    for (channels = 0; channels < channel_tiles(); ++channels) {
      const int c = work.channel + channels * kTileChannels;
      const int active = smaller(work.channel_end - c, kTileChannels);
      T* skips = shared.template part<T>(shared.ends);  // of the sum over the launch's directions
      __syncthreads();
      if (static_cast<int>(threadIdx.x) < kTileChannels) skips[threadIdx.x] = skip_of(c, active);
      __syncthreads();
      const io_t* x_of_sample = a.x.template at<io_t>(work.sample, c);
      T* sums = a.sum.template at<T>(work.sample, c);
      io_t* out = a.y.template at<io_t>(work.sample, c);
      for (int i = threadIdx.x; i < count; i += blockDim.x) {
        const int axis = first + i, line = s.by_height(axis);
        const int p = s.segments > 1 && columns ? (axis - line * s.height) * s.width + line : axis;
        const io_t* from = at(x_of_sample, p, a.x.position);
        T* sum = at(sums, p, a.sum.position);
        io_t* y = at(out, p, a.y.position);
        const int32_t place = shared.sum + channels * static_cast<int>(Shared<io_t>::sum_bytes(s)) +
                              place_of<T>(s, i, 0);
        if (kMap && a.wide && active == kTileChannels) {
          write_position<8>(place, active, skips, from, sum, y);
        } else {
          write_position<1>(place, active, skips, from, sum, y);
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
  template <int kWidth>
  __device__ __forceinline__ void write_position(int32_t place, int active, const T* skips,
                                                 const io_t* x, T* sum, io_t* out) {
    struct alignas(kWidth > 1 ? 16 : sizeof(io_t)) Values {
      io_t v[kWidth];
    };
    struct alignas(kWidth > 1 ? 16 : sizeof(T)) Sums {
      T v[kWidth];
    };
    const bool narrow = a.directions.end && a.y.data != nullptr;
    MMVMAMBA_UNROLL
    for (int first = 0; first < kTileChannels; first += kWidth) {
      if (kWidth == 1 && first >= active) return;
      const Values u = *reinterpret_cast<const Values*>(x + first * (kWidth > 1 ? 1 : a.x.channel));
      Sums* total = reinterpret_cast<Sums*>(sum + first * (kWidth > 1 ? 1 : a.sum.channel));
      Sums y;
      MMVMAMBA_UNROLL
      for (int i = 0; i < kWidth; ++i) {
        const int c = first + i;
        // Sums lie in rows of 128 bytes, within which the halves of 16 channels change places.
        const T* half = reinterpret_cast<const T*>(
            shared.memory +
            (place ^ (c / (kTileChannels / 2) * (kTileChannels / 2) * int{sizeof(T)})));
        y.v[i] = half[c % (kTileChannels / 2)] + skips[c] * static_cast<T>(u.v[i]);
      }
      if (!a.directions.begin) {
        const Sums before = *total;
        MMVMAMBA_UNROLL
        for (int i = 0; i < kWidth; ++i) y.v[i] += before.v[i];
      }
      if (narrow) {
        Values values;
        MMVMAMBA_UNROLL
        for (int i = 0; i < kWidth; ++i) values.v[i] = static_cast<io_t>(y.v[i]);
        *reinterpret_cast<Values*>(out + first * (kWidth > 1 ? 1 : a.y.channel)) = values;
      } else {
        *total = y;
      }
    }
  }
};

template <typename io_t, bool kMap, bool kOne, bool kSummary>
__global__ void __launch_bounds__(kMaxWarps * 32, 1) forward_kernel(const ScanForward args) {
  extern __shared__ __align__(16) unsigned char memory[];
  ForwardScan<io_t, kMap, kOne, kSummary>(args, memory).run();
}

template <typename io_t>
__global__ void pack_weight_kernel(const ScanForward args, int64_t count) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (index < count) pack_weight<io_t>(args, index);
}

// Once for each call.
template <typename io_t>
cudaError_t launch_pack_weight(const ScanForward& args, cudaStream_t stream) {
  if constexpr (Shared<io_t>::kMma) {
    constexpr int kThreads = 128;
    const int64_t pieces = packed_weight_pieces(args.plan);
    if (pieces > 0) {
      pack_weight_kernel<io_t>
          <<<static_cast<unsigned>(pieces), kThreads, 0, stream>>>(args, pieces * kThreads);
    }
  }
  return cudaGetLastError();
}

template <typename io_t, bool kMap, bool kOne, bool kSummary>
cudaError_t launch_forward_one(const ScanForward& args, cudaStream_t stream) {
  const ScanPlan& s = args.plan;
  const int64_t blocks = int64_t{s.batch} * s.segments * (s.channels / s.group_channels) *
                         s.group_parts * (kSummary ? args.directions.count : 1);
  if (blocks > 0x7fffffff) return cudaErrorInvalidConfiguration;
  static std::atomic<uint64_t> raised{0};
  const auto kernel = forward_kernel<io_t, kMap, kOne, kSummary>;
  const cudaError_t status =
      raise_shared_memory_limit(reinterpret_cast<const void*>(kernel), raised);
  if (status != cudaSuccess) return status;
  const Shared<io_t> layout(s, nullptr);
  const int64_t shared = kSummary ? layout.sum : layout.size;  // a summary has no sum
  kernel<<<static_cast<unsigned>(blocks), static_cast<unsigned>(s.warps * 32),
           static_cast<size_t>(shared), stream>>>(args);
  return cudaGetLastError();
}

template <typename io_t>
cudaError_t launch_forward_io(const ScanForward& args, bool summary, cudaStream_t stream) {
  const auto launch = [&](auto map, auto one) {
    constexpr bool kMap = decltype(map)::value, kOne = decltype(one)::value;
    return summary ? launch_forward_one<io_t, kMap, kOne, true>(args, stream)
                   : launch_forward_one<io_t, kMap, kOne, false>(args, stream);
  };
  if (args.pack_weights) {
    const cudaError_t status = launch_pack_weight<io_t>(args, stream);
    if (status != cudaSuccess) return status;
  }
  const std::true_type yes;
  const std::false_type no;
  if (!args.is_map) return launch(no, no);
  return args.plan.states == 1 ? launch(yes, yes) : launch(yes, no);
}

#define MMVMAMBA_FORWARD(io_t) \
  template cudaError_t launch_forward_io<io_t>(const ScanForward&, bool, cudaStream_t)

}  // namespace mmvmamba
