// The forward: what a block or a lane does with a tile, and the kernels.
#pragma once

#include "scan_block.cuh"
#include "scan_lane.cuh"
#include "scan_launches.cuh"

namespace mmvmamba {

// The states at the end of the walk.
template <class Inputs, typename T>
__device__ __forceinline__ void write_last_state(const Inputs& in, int n, const T (&h)[2]) {
  if (in.a.last_state == nullptr) return;
  T* to = static_cast<T*>(in.a.last_state);
  for (int c = 0; c < in.me.active; ++c) {
    const int64_t channel = int64_t{in.work.sample} * in.s.channels + in.work.channel;
    to[(channel + in.me.channel + c) * in.s.states + in.first_state + n] = h[c] * T(kLn2);
  }
}

template <typename io_t, bool kMap, bool kOne>
struct ForwardBlock
    : BlockScan<ForwardBlock<io_t, kMap, kOne>, ScanForward, io_t, kMap, kOne, false> {
  using Base = BlockScan<ForwardBlock, ScanForward, io_t, kMap, kOne, false>;
  using Base::a, Base::s, Base::work, Base::shared, Base::me, Base::states;
  using Base::Base;
  using typename Base::T;

  __device__ __forceinline__ void write_sums() { Base::template write_sums<io_t>(a.x); }

  __device__ __forceinline__ void finish_states() {
    if (kMap || a.last_state == nullptr) return;
    __syncthreads();
    if (me.warp > 0 || me.run > 0) return;
    const Pair<T>* carry = Base::carry_at(Base::turn) + me.team;
    for (int n = 0; n < states; ++n, carry += kTeams) write_last_state(*this, n, carry->v);
  }

  __device__ __forceinline__ void scan_tile(const Tile& tile, int slot, bool /*first*/, bool last) {
    T dt[kStep][2];
    Held<io_t> u[kStep];
    Base::read_x(slot, u);
    Base::time_steps(tile, slot, dt, [](int, const T(&)[2]) {});
    if constexpr (kOne) {
      scan_state(tile, 0, slot, last, dt, u);
    } else {
      _Pragma("unroll 1") for (int n = 0; n < states; ++n) {
        scan_state(tile, n, slot, last, dt, u);
      }
    }
  }

  // Scans one state over a tile: first finds the tile's effect on it, then, from the state that the
  // warps before have left, its values.
  __device__ __forceinline__ void scan_state(const Tile& tile, int n, int slot, bool last,
                                             const T (&dt)[kStep][2],
                                             const Held<io_t> (&u)[kStep]) {
    T decay[kStep][2], add[kStep][2], h[2];
    Base::decays(tile, n, dt, decay);
    Base::inflow(n, slot, dt, u, add);
    Effect<T> effect = {{decay[0][0], decay[0][1]}, {add[0][0], add[0][1]}};
    MMVMAMBA_UNROLL
    for (int j = 1; j < kStep; ++j) {
      MMVMAMBA_UNROLL
      for (int c = 0; c < 2; ++c) {
        effect.add[c] = decay[j][c] * effect.add[c] + add[j][c];
        effect.decay[c] *= decay[j][c];
      }
    }
    const Effect<T> before = scan_team<false>(me, effect);
    Base::scan_block(n, last, effect, h);
    if (a.states != nullptr) save_state(tile, n, h);
    int32_t place[kStep];
    load_row(Base::lane_places(slot), place);
    unsigned char* sums = Base::lane_sums();
    T C[kStep], out[2];
    Base::read_outflow(n, slot, C, out);
    MMVMAMBA_UNROLL
    for (int c = 0; c < 2; ++c) h[c] = before.decay[c] * h[c] + before.add[c];
    // Four loads go out before a store, which might alias.
    MMVMAMBA_UNROLL
    for (int first = 0; first < kStep; first += 4) {
      Pair<T> y[4];
      MMVMAMBA_UNROLL
      for (int j = 0; j < 4; ++j) y[j] = *reinterpret_cast<const Pair<T>*>(sums + place[first + j]);
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

  // The state before a tile, for the backward.
  __device__ __forceinline__ void save_state(const Tile& tile, int n, const T (&h)[2]) {
    if (me.run > 0) return;
    T* to = Base::saved_state(tile.first / kTilePositions, n);
    if (me.active > 0) to[0] = h[0];
    if (me.active > 1) to[1] = h[1];
  }
};

template <typename io_t, bool kMap, bool kOne, bool kSummary>
struct ForwardLane : LaneScan<ForwardLane<io_t, kMap, kOne, kSummary>, ScanForward, io_t, kMap,
                              kOne, kSummary, false> {
  using Base = LaneScan<ForwardLane, ScanForward, io_t, kMap, kOne, kSummary, false>;
  using Base::a, Base::s, Base::work, Base::shared, Base::me, Base::states, Base::first_state;
  using Base::Base;
  using typename Base::T;

  __device__ __forceinline__ void write_last_states() {
    for (int n = 0; !kMap && n < states; ++n) write_last_state(*this, n, Base::state_at(n).add);
  }

  __device__ __forceinline__ void scan_step(const Steps& tile, int slot) {
    T dt[kStep][2], y[kStep][2];
    Held<io_t> u[kStep];
    Base::read_x(slot, u);
    Base::time_steps(tile, slot, dt, [](int, const T(&)[2]) {});
    if constexpr (kOne) {
      scan_state(tile, 0, slot, dt, u, y);
    } else {
      MMVMAMBA_UNROLL
      for (int j = 0; j < kStep; ++j) y[j][0] = y[j][1] = T(0);
      _Pragma("unroll 1") for (int n = 0; n < states; ++n) scan_state(tile, n, slot, dt, u, y);
    }
    if constexpr (!kSummary) add_outputs(tile, slot, u, y);
  }

  __device__ __forceinline__ void scan_state(const Steps& tile, int n, int slot,
                                             const T (&dt)[kStep][2], const Held<io_t> (&u)[kStep],
                                             T (&y)[kStep][2]) {
    T decay[kStep][2], add[kStep][2], C[kStep], out[2];
    Base::decays(tile, n, dt, decay);
    Base::inflow(n, slot, dt, u, add);
    if constexpr (!kSummary) Base::read_outflow(n, slot, C, out);
    Effect<T> state = Base::state_at(n);
    MMVMAMBA_UNROLL
    for (int j = 0; j < kStep; ++j) {
      MMVMAMBA_UNROLL
      for (int c = 0; c < 2; ++c) {
        state.add[c] = decay[j][c] * state.add[c] + add[j][c];
        if constexpr (kSummary) {
          state.decay[c] *= decay[j][c];
        } else {
          const T term = (kMap ? C[j] : C[j] * out[c]) * state.add[c];
          y[j][c] = kOne ? term : y[j][c] + term;
        }
      }
    }
    Base::state_at(n) = state;
  }

  // Adds to the sum over the directions of a launch and the groups of states. It stays in shared
  // memory, where no other lane uses these positions; the last direction and group write it.
  __device__ __forceinline__ void add_outputs(const Steps& tile, int slot,
                                              const Held<io_t> (&u)[kStep], T (&y)[kStep][2]) {
    const bool first = Base::which == 0 && first_state == 0;
    const bool last =
        Base::which + 1 == a.directions.count && first_state + states == (kOne ? 1 : s.states);
    Pair<T>* sums = shared.template part<Pair<T>>(shared.at.sum + me.warp * shared.at.sum_bytes) +
                    tile.step * kStep * 32 + me.lane;
    if (tile.reversed) {
      add_sums<true>(sums, first, last, y);
    } else {
      add_sums<false>(sums, first, last, y);
    }
    if (last) write_outputs(tile, slot, u, y);
  }
  template <bool kReversed>
  __device__ __forceinline__ void add_sums(Pair<T>* sums, bool first, bool last,
                                           T (&y)[kStep][2]) const {
    const auto sum = [&](int j) -> Pair<T>& { return sums[(kReversed ? kStep - 1 - j : j) * 32]; };
    MMVMAMBA_UNROLL
    for (int j = 0; !first && j < kStep; ++j) {
      y[j][0] += sum(j).v[0];
      y[j][1] += sum(j).v[1];
    }
    MMVMAMBA_UNROLL
    for (int j = 0; !last && j < kStep; ++j) sum(j) = {{y[j][0], y[j][1]}};
  }

  __device__ __forceinline__ void write_outputs(const Steps& tile, int slot,
                                                const Held<io_t> (&u)[kStep], T (&y)[kStep][2]) {
    if (me.active == 0) return;
    const Pair<T> skip = reinterpret_cast<const Pair<T>*>(Base::skips())[me.team];
    int32_t position[kStep];
    load_row(shared.positions(slot) + me.run * kStep, position);
    MMVMAMBA_UNROLL
    for (int j = 0; j < kStep; ++j) {
      y[j][0] += skip.v[0] * u[j][0];
      y[j][1] += skip.v[1] * u[j][1];
    }
    const auto complete = [&](auto whole) {
      const auto exists = [&](int j) {
        return decltype(whole)::value || tile.has(me.run * kStep + j);
      };
      const auto for_all = [&](const MapView& map, auto* base, auto use) {
        auto* first = base + Base::channel_offset(map);
        MMVMAMBA_UNROLL
        for (int j = 0; j < kStep; ++j) {
          if (exists(j)) use(at(first, position[j], map.position), y[j]);
        }
      };
      if (!a.directions.begin) {
        for_all(a.sum, static_cast<const T*>(Base::source(&Sources::sum)),
                [&](const T* before, T(&sum)[2]) { add_pair(before, sum); });
      }
      if (a.directions.end && a.out.data != nullptr) {
        for_all(a.out, static_cast<io_t*>(Base::source(&Sources::out)),
                [&](io_t* to, const T(&sum)[2]) { write_pair(a.out, to, sum); });
      } else {
        for_all(a.sum, static_cast<T*>(Base::source(&Sources::sum)),
                [&](T* to, const T(&sum)[2]) { write_pair(a.sum, to, sum); });
      }
    };
    if (__builtin_expect(tile.is_whole(), 1)) {
      complete(std::true_type());
    } else {
      complete(std::false_type());
    }
  }
  __device__ __forceinline__ void add_pair(const T* from, T (&to)[2]) const {
    if constexpr (kMap) {
      const Pair<T> before = *reinterpret_cast<const Pair<T>*>(from);
      to[0] += before.v[0];
      to[1] += before.v[1];
    } else {
      to[0] += from[0];
      to[1] += from[me.next * a.sum.channel];
    }
  }
  template <typename V>
  __device__ __forceinline__ void write_pair(const MapView& map, V* to, const T (&y)[2]) const {
    if constexpr (kMap) {
      *reinterpret_cast<Held<V>*>(to) = Held<V>(Pair<T>{{y[0], y[1]}});
    } else {
      to[0] = static_cast<V>(y[0]);
      if (me.active > 1) to[map.channel] = static_cast<V>(y[1]);
    }
  }
};

template <typename io_t, bool kMap, bool kOne>
__global__ void __launch_bounds__(most_warps<io_t>(false, kMap&& kOne) * 32, 1)
    forward_kernel(const ScanForward args) {
  extern __shared__ __align__(16) unsigned char memory[];
  ForwardBlock<io_t, kMap, kOne>(args, memory).run();
}

template <typename io_t, bool kMap, bool kOne, bool kSummary>
__global__ void __launch_bounds__(lane_threads<io_t>(kMap&& kOne), 2)
    forward_lane_kernel(const ScanForward args) {
  extern __shared__ __align__(16) unsigned char memory[];
  ForwardLane<io_t, kMap, kOne, kSummary>(args, memory).run();
}

template <typename io_t>
cudaError_t launch_forward_io(const ScanForward& args, ScanPass pass, cudaStream_t stream) {
  const cudaError_t status = launch_pack_weight<io_t>(args, stream);
  if (status != cudaSuccess) return status;
  const auto launch = [&](auto map, auto one) {
    constexpr bool kMap = decltype(map)::value, kOne = decltype(one)::value;
    static std::atomic<uint64_t> raised[3] = {};
    switch (pass) {
      case ScanPass::kBlocks:
        return launch_blocks<most_warps<io_t>(false, kMap && kOne)>(
            forward_kernel<io_t, kMap, kOne>, raised[0], args, pass, stream);
      case ScanPass::kSummary:
        return launch_blocks<kMostLaneWarps>(forward_lane_kernel<io_t, kMap, kOne, true>, raised[1],
                                             args, pass, stream);
      case ScanPass::kLanes:
        return launch_blocks<kMostLaneWarps>(forward_lane_kernel<io_t, kMap, kOne, false>,
                                             raised[2], args, pass, stream);
    }
    return cudaErrorInvalidValue;
  };
  const std::true_type yes;
  const std::false_type no;
  if (!args.is_map) return launch(no, no);
  return args.plan.states == 1 ? launch(yes, yes) : launch(yes, no);
}

#define MMVMAMBA_FORWARD(io_t) \
  template cudaError_t launch_forward_io<io_t>(const ScanForward&, ScanPass, cudaStream_t)

}  // namespace mmvmamba
