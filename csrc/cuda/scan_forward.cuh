// The forward: what a block does with a tile, and the kernel.
#pragma once

#include "scan_block.cuh"

namespace mmvmamba {

template <typename io_t, bool kMap, bool kOne, bool kSummary>
struct ForwardScan : BlockScan<ForwardScan<io_t, kMap, kOne, kSummary>, ScanForward, io_t, kMap,
                               kOne, kSummary, false> {
  using Base = BlockScan<ForwardScan, ScanForward, io_t, kMap, kOne, kSummary, false>;
  using Base::a, Base::s, Base::work, Base::shared, Base::me, Base::states, Base::first_state;
  using Base::Base;
  using typename Base::T;

  __device__ __forceinline__ void write_sums() { Base::template write_sums<io_t>(a.x); }

  // What the segment has done to the states, or the states at the end of the walk.
  __device__ __forceinline__ void finish_states() {
    if constexpr (kSummary) {
      Base::write_summary();
    } else if (!kMap && a.last_state != nullptr && work.segment + 1 == s.segments) {
      __syncthreads();
      if (me.warp > 0 || me.run > 0) return;
      const Pair<T>* carry = Base::carry_at(Base::turn) + me.team;
      for (int n = 0; n < states; ++n, carry += 2 * kTeams) {
        for (int c = 0; c < me.active; ++c) {
          static_cast<T*>(
              a.last_state)[(int64_t{work.sample} * s.channels + work.channel + me.channel + c) *
                                s.states +
                            first_state + n] = carry->v[c] * T(kLn2);
        }
      }
    }
  }

  __device__ __forceinline__ void scan_tile(const Tile& tile, int slot, bool /*first*/, bool last) {
    T dt[kStep][2];
    Held<io_t> u[kStep];
    const io_t* x = static_cast<const io_t*>(Base::source(&Sources::x)) + Base::channel_offset(a.x);
    Base::read_map(a.x, x, slot, u);
    Base::time_steps(tile, slot, dt, [](int, const T(&)[2]) {});
    if constexpr (kOne) {
      scan_state(tile, 0, slot, last, dt, u);
    } else {
      _Pragma("unroll 1") for (int n = 0; n < states; ++n) {
        scan_state(tile, n, slot, last, dt, u);
      }
    }
  }

  // One state over a tile: first what the tile does to it, then, from where the warps before have
  // left it, its values.
  __device__ __forceinline__ void scan_state(const Tile& tile, int n, int slot, bool last,
                                             const T (&dt)[kStep][2],
                                             const Held<io_t> (&u)[kStep]) {
    const T* values = shared.values(slot) + n * 2 * kTilePositions + me.run * kStep;
    T decay[kStep][2], add[kStep][2];
    T h[2];
    T B[kStep];
    Base::decays(tile, n, dt, decay);
    load_row(values, B);
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
        const T b = Base::parameter(a.params.B, n, c);
        MMVMAMBA_UNROLL
        for (int j = 0; j < kStep; ++j) add[j][c] *= b;
      }
    }
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
    if constexpr (!kSummary) {
      if (a.states != nullptr) save_state(tile, n, h);
      int32_t place[kStep];
      load_row(Base::lane_places(slot), place);
      unsigned char* sums = Base::lane_sums();
      T C[kStep], out[2] = {T(1), T(1)};
      load_row(values + kTilePositions, C);
      MMVMAMBA_UNROLL
      for (int c = 0; c < 2; ++c) {
        h[c] = before.decay[c] * h[c] + before.add[c];
        if (!kMap && a.params.C != nullptr) out[c] = Base::parameter(a.params.C, n, c);
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

  // The state before a tile, for the backward.
  __device__ __forceinline__ void save_state(const Tile& tile, int n, const T (&h)[2]) {
    if (me.run > 0) return;
    T* to = Base::saved_state(tile, n);
    if (me.active > 0) to[0] = h[0];
    if (me.active > 1) to[1] = h[1];
  }
};

template <typename io_t, bool kMap, bool kOne, bool kSummary>
__global__ void __launch_bounds__(most_warps<io_t>(false, kMap&& kOne) * 32, 1)
    forward_kernel(const ScanForward args) {
  extern __shared__ __align__(16) unsigned char memory[];
  ForwardScan<io_t, kMap, kOne, kSummary>(args, memory).run();
}

template <typename io_t>
cudaError_t launch_forward_io(const ScanForward& args, bool summary, cudaStream_t stream) {
  const cudaError_t status = launch_pack_weight<io_t>(args, stream);
  if (status != cudaSuccess) return status;
  const auto launch = [&](auto map, auto one, auto only_summary) {
    constexpr bool kMap = decltype(map)::value, kOne = decltype(one)::value;
    constexpr bool kSummary = decltype(only_summary)::value;
    static std::atomic<uint64_t> raised{0};
    return launch_blocks<kSummary, most_warps<io_t>(false, kMap && kOne)>(
        forward_kernel<io_t, kMap, kOne, kSummary>, raised, args, stream);
  };
  const auto launch_form = [&](auto only_summary) {
    const std::true_type yes;
    const std::false_type no;
    if (!args.is_map) return launch(no, no, only_summary);
    return args.plan.states == 1 ? launch(yes, yes, only_summary) : launch(yes, no, only_summary);
  };
  return summary ? launch_form(std::true_type()) : launch_form(std::false_type());
}

#define MMVMAMBA_FORWARD(io_t) \
  template cudaError_t launch_forward_io<io_t>(const ScanForward&, bool, cudaStream_t)

}  // namespace mmvmamba
