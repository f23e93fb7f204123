// The inputs that a warp reads to scan a tile: parameters, maps, time steps. Both kinds of scan use
// them: by a block, see scan_block.cuh, and by single lanes, see scan_lane.cuh.
#pragma once

#include "scan_tile.cuh"

namespace mmvmamba {

// kMap: the map has contiguous channels, an even number of them, and low-rank time steps, as in
// most calls of ss2d_scan. Otherwise strides and the number of channels are arbitrary, and time
// steps and constant B and C may be given, as in selective_scan.
// kOne: there is one state.
// kBack: scan against the walk. The "state" is then the gradient that flows back.
template <class Args, typename io_t, bool kMap, bool kOne, bool kBack>
struct ScanInputs {
  using T = typename Accumulate<io_t>::type;

  const Args& a;
  const ScanPlan& s;
  const Shared<io_t> shared;
  Work work;
  Place me;
  int which = 0;                    // the direction of the launch
  int first_state = 0, states = 1;  // worked on at a time

  // `own`: the memory of a warp with a tile of channels of its own, else of the block.
  __device__ __forceinline__ ScanInputs(const Args& args, unsigned char* memory, unsigned char* own)
      : a(args),
        s(args.plan),
        shared{args.plan.shared, memory, own},
        work(args.plan, static_cast<int>(blockIdx.x)) {}

  // Sets the pointers that all directions share.
  __device__ __forceinline__ void set_maps() const {
    Sources& to = shared.sources();
    to.x = a.x.template at<io_t>(work.sample, work.channel);
    if constexpr (kBack) {
      to.grad_y = a.grad_y_is_acc
                      ? static_cast<const void*>(a.grad_y.template at<T>(work.sample, work.channel))
                      : a.grad_y.template at<io_t>(work.sample, work.channel);
    }
  }
  __device__ __forceinline__ void set_outputs() const {
    shared.sources().sum = a.sum.template at<T>(work.sample, work.channel);
    shared.sources().out = a.out.template at<io_t>(work.sample, work.channel);
  }
  // And those of the current direction.
  __device__ __forceinline__ void set_rows(void* states) const {
    Sources& to = shared.sources();
    to.weights =
        static_cast<const char*>(a.packed_weight) + multiply_wide(work.tile, s.packed_bytes);
    to.states =
        states == nullptr ? nullptr : static_cast<T*>(states) + first_saved() + work.channel;
  }
  __device__ __forceinline__ const io_t* rows() const {
    return kMap || s.rank > 0 ? a.low.template row<io_t>(work.sample, work.group, work.direction)
                              : nullptr;
  }
  template <typename V>
  __device__ __forceinline__ V* source(V* Sources::* pointer) const {
    return in_global(shared.sources().*pointer);
  }

  // The index of the walk's first state in an array of the states before each tile.
  __device__ __forceinline__ int64_t first_saved() const {
    return (work.sample * s.directions + work.direction) * s.walk_states;
  }
  // The lane's entry for a tile and a state of the group, from Sources::states on.
  __device__ __forceinline__ T* saved_state(int tile, int n) const {
    const int row = tile * (kOne ? 1 : s.states) + (kOne ? 0 : first_state + n);
    return at(static_cast<T*>(source(&Sources::states)), row, s.channels) + me.channel;
  }

  // Stores constants of the tile's i-th channel: the bias of its time steps in units of log2(e),
  // twice, as the tensor cores' accumulators start from it, and A if there is one state.
  __device__ __forceinline__ void set_constants(int i) const {
    if (i >= kTileChannels) return;
    const int at = work.direction * s.channels + work.channel + smaller(i, work.channels - 1);
    const T* biases = static_cast<const T*>(a.params.dt_bias);
    T* to = shared.template constants<T>();
    to[2 * i] = to[2 * i + 1] = kMap || biases != nullptr ? biases[at] * T(kLog2E) : T(0);
    if constexpr (kOne) to[2 * kTileChannels + i] = static_cast<const T*>(a.params.A)[at];
  }
  // Stores the i-th channel's skip weight, summed over the directions of the launch.
  __device__ __forceinline__ void set_skip(int i) const {
    if (i >= kTileChannels) return;
    const T* D = static_cast<const T*>(a.params.D);
    T skip = T(0);
    for (int k = 0; D != nullptr && k < a.directions.count; ++k) {
      skip += D[a.directions.index[k] * s.channels + work.channel + smaller(i, work.channels - 1)];
    }
    skips()[i] = skip;
  }
  __device__ __forceinline__ T* skips() const {
    return shared.template constants<T>() + 3 * kTileChannels;
  }
  // A of a state.
  __device__ __forceinline__ void read_rates(int n, T (&rate)[2]) const {
    if constexpr (kOne) {
      const Pair<T> pair = shared.template constants<Pair<T>>()[2 * kTeams + me.team];
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
  __device__ __forceinline__ T parameter(const void* values, int n, int c) const {  // (K, C, S)
    return static_cast<const T*>(
        values)[(work.direction * s.channels + work.channel + me.channel + c * me.next) *
                    int64_t{s.states} +
                first_state + n];
  }

  // Reads a map at the lane's positions, for its two channels.
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
  // The offset of the lane's first channel from the tile's.
  __device__ __forceinline__ int64_t channel_offset(const MapView& map) const {
    return me.channel * (kMap ? 1 : map.channel);
  }
  __device__ __forceinline__ void read_x(int slot, Held<io_t> (&to)[kStep]) {
    read_map(a.x, static_cast<const io_t*>(source(&Sources::x)) + channel_offset(a.x), slot, to);
  }

  // Time steps of a lane's positions, zero beyond the end. `before` is called with each sum before
  // softplus.
  template <class Positions, class Before>
  __device__ __forceinline__ void time_steps(const Positions& tile, int slot, T (&dt)[kStep][2],
                                             Before before) {
    const Values<T, 4> bias = shared.template constants<Values<T, 4>>()[me.team];
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
    if (__builtin_expect(!tile.is_whole(), 0)) {
      MMVMAMBA_UNROLL
      for (int j = 0; j < kStep; ++j) {
        if (!tile.has(me.run * kStep + j)) dt[j][0] = dt[j][1] = T(0);
      }
    }
  }

  // Decays at the lane's positions. Beyond the end nothing happens to a state, even if A is
  // infinite.
  template <class Positions>
  __device__ __forceinline__ void decays(const Positions& tile, int n, const T (&dt)[kStep][2],
                                         T (&decay)[kStep][2]) const {
    T rate[2];
    read_rates(n, rate);
    MMVMAMBA_UNROLL
    for (int j = 0; j < kStep; ++j) {
      decay[j][0] = exp2_of(rate[0] * dt[j][0]);
      decay[j][1] = exp2_of(rate[1] * dt[j][1]);
    }
    if (__builtin_expect(!tile.is_whole(), 0)) {
      MMVMAMBA_UNROLL
      for (int j = 0; j < kStep; ++j) {
        if (!tile.has(me.run * kStep + j)) decay[j][0] = decay[j][1] = T(1);
      }
    }
  }

  // What the lane's positions add to a state.
  __device__ __forceinline__ void inflow(int n, int slot, const T (&dt)[kStep][2],
                                         const Held<io_t> (&u)[kStep], T (&add)[kStep][2]) const {
    T B[kStep];
    load_row(shared.values(slot) + n * 2 * kTilePositions + me.run * kStep, B);
    MMVMAMBA_UNROLL
    for (int j = 0; j < kStep; ++j) {
      MMVMAMBA_UNROLL
      for (int c = 0; c < 2; ++c) {
        add[j][c] = dt[j][c] * u[j][c] * B[j];
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
  }
  // The factors from a state to the outputs: C at the lane's positions, and the constant C, or 1.
  __device__ __forceinline__ void read_outflow(int n, int slot, T (&C)[kStep], T (&constant)[2]) {
    load_row(shared.values(slot) + (2 * n + 1) * kTilePositions + me.run * kStep, C);
    MMVMAMBA_UNROLL
    for (int c = 0; c < 2; ++c) {
      constant[c] = !kMap && a.params.C != nullptr ? parameter(a.params.C, n, c) : T(1);
    }
  }
};

}  // namespace mmvmamba
