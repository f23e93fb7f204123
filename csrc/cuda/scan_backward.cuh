// The backward: how a block or a lane processes a tile, and the kernels. Tiles are visited against
// the walk. The states inside a tile are computed again from the state before it, which the forward
// saved. The gradient g of a state flows from later positions to earlier ones:
//
//   flow_l = decay_l g_l,    g_l = C_l grad_y_l + flow_(l + 1).
//
// Every sum has a fixed order. Over positions: in a lane, over a team, over the tiles of a warp,
// over the warps of a block, then over blocks, by the caller. Over channels: in a lane, over teams,
// over tiles of channels, then over blocks.
#pragma once

#include "scan_block.cuh"
#include "scan_lane.cuh"
#include "scan_launches.cuh"

namespace mmvmamba {

// y's gradient at the lane's positions: zero beyond the end, and for channels that are not the
// lane's own. Whatever is summed then needs no mask. If grad_t is the accumulation type, memory may
// hold either.
template <typename io_t, typename grad_t, class Inputs, class Positions>
__device__ __forceinline__ void read_grad_y(Inputs& in, const Positions& tile, int slot,
                                            Held<grad_t> (&to)[kStep]) {
  using T = typename Inputs::T;
  const int64_t offset = in.channel_offset(in.a.grad_y);
  const void* from = in.source(&Sources::grad_y);
  if (std::is_same_v<grad_t, io_t> || (std::is_same_v<grad_t, T> && in.a.grad_y_is_acc)) {
    in.read_map(in.a.grad_y, static_cast<const grad_t*>(from) + offset, slot, to);
  } else {
    Held<io_t> narrow[kStep];
    in.read_map(in.a.grad_y, static_cast<const io_t*>(from) + offset, slot, narrow);
    MMVMAMBA_UNROLL
    for (int j = 0; j < kStep; ++j) {
      to[j] = Pair<T>{{static_cast<T>(narrow[j][0]), static_cast<T>(narrow[j][1])}};
    }
  }
  if (__builtin_expect(!tile.is_whole() || in.me.active < 2, 0)) {
    MMVMAMBA_UNROLL
    for (int j = 0; j < kStep; ++j) {
      to[j] = to[j].first(tile.has(in.me.run * kStep + j) ? in.me.active : 0);
    }
  }
}

template <typename io_t, typename grad_t, bool kMap, bool kOne>
struct BackwardBlock
    : BlockScan<BackwardBlock<io_t, grad_t, kMap, kOne>, ScanBackward, io_t, kMap, kOne, true> {
  using Base = BlockScan<BackwardBlock, ScanBackward, io_t, kMap, kOne, true>;
  using Base::a, Base::s, Base::work, Base::shared, Base::me, Base::states, Base::first_state;
  using Base::Base;
  using typename Base::T;

  // What a lane keeps of a tile. Where gradients before softplus will be rounded to the I/O type,
  // so are the slopes.
  struct Lane {
    Held<io_t> u[kStep];
    Held<grad_t> grad_y[kStep];
    Held<std::conditional_t<kOne, io_t, T>> slope[kStep];
    T dt[kStep][2];
  };

  __device__ __forceinline__ void write_sums() {
    if (a.grad_y_is_acc) {
      Base::template write_sums<T>(a.grad_y);
    } else {
      Base::template write_sums<io_t>(a.grad_y);
    }
  }

  // A warp's sums over positions for the gradients of parameters: of the biases, D and each state.
  __device__ __forceinline__ T* param_sums(int row) const {
    return shared.template part<T>(shared.at.param_sums) + me.warp * shared.at.param_sum_count +
           sum_place(row);
  }
  static __device__ __forceinline__ bool of_lane(int row) { return kOne || row < 2; }
  static __device__ __forceinline__ int sum_place(int row) {
    return of_lane(row) ? row * kLaneSums : 2 * kLaneSums + (row - 2) * kTileChannels;
  }
  // And for that of dt_weight, as a product of tensor cores: for each 8 ranks, a lane's piece has
  // two of them for each of two channels.
  __device__ __forceinline__ Values<T, 4>* weight_sums(int warp) const {
    return shared.template part<Values<T, 4>>(shared.at.weight_sums) +
           warp * shared.at.weight_pieces;
  }

  // The first of the warp's tiles sets the warp's sums, and the others add to them. The sums
  // restart with each group of states, except those of the bias and D.
  __device__ __forceinline__ void add_sum(int row, bool set, const T (&sum)[2]) const {
    Pair<T>* total = reinterpret_cast<Pair<T>*>(param_sums(row));
    Pair<T> value = {{sum[0], sum[1]}};
    if (of_lane(row)) {
      total += me.lane;
    } else {
      value = {{sum_of_team(sum[0]), sum_of_team(sum[1])}};
      total += me.team;
    }
    if (of_lane(row) || me.run == 0) {
      if (!set) value = {{value.v[0] + total->v[0], value.v[1] + total->v[1]}};
      *total = value;
    }
  }
  // Warps that have had a tile.
  __device__ __forceinline__ int used_warps() const { return smaller(s.warps, work.tiles); }

  __device__ __forceinline__ void set_sources() const {
    Base::set_sources();
    Sources& to = shared.sources();
    to.grad_rows = a.grad_low.template row<T>(work.sample, work.group, work.direction) +
                   work.part * a.low_part;
    const int64_t part = int64_t{work.sample} * s.segments + work.segment;
    to.grad_params = static_cast<T*>(a.grad_params) +
                     (part * s.directions + work.direction) * param_rows().count * s.channels +
                     work.channel;
  }
  __device__ __forceinline__ ParamRows param_rows() const {
    return ParamRows(s, !kMap && a.B.data == nullptr, !kMap && a.C.data == nullptr);
  }
  __device__ __forceinline__ T* param_row(int row) const {
    return at(static_cast<T*>(Base::source(&Sources::grad_params)), row, s.channels);
  }

  // The sums of all warps to memory.
  __device__ __forceinline__ void finish_states() {
    __syncthreads();
    const bool end = first_state + states == (kOne ? 1 : s.states);
    const unsigned sums = (2 + states * (kMap ? 1 : s.state_sums)) * kTileChannels;
    for (unsigned i = threadIdx.x; i < sums; i += blockDim.x) {
      finish_sum(static_cast<int>(i / kTileChannels), static_cast<int>(i % kTileChannels), end);
    }
    if (end && (kMap || s.rank > 0)) finish_weights();
  }
  __device__ __forceinline__ void finish_sum(int row, int channel, bool end) const {
    const bool wide = of_lane(row);
    const T* from = shared.template part<T>(shared.at.param_sums) + sum_place(row) +
                    (wide ? channel / 2 * 2 * kTeamLanes + channel % 2 : channel);
    T sum = T(0);
    _Pragma("unroll 1") for (int w = 0; w < used_warps(); ++w) {
      MMVMAMBA_UNROLL
      for (int run = 0; run < kTeamLanes; ++run) {
        if (run == 0 || wide) sum += from[2 * run];
      }
      from += shared.at.param_sum_count;
    }
    const ParamRows rows = param_rows();
    const int n = row - 2;
    int to = rows.A + first_state + n;
    T factor = T(kLn2);
    if (row == 0) {
      if (!end) return;
      to = rows.bias;
      factor = T(kLog2E) / kSlopeScale<io_t>;
    } else if (row == 1) {
      if (!end || !a.directions.begin || Base::which > 0) return;
      to = rows.D;
      factor = T(1);
    } else if (!kMap && n >= states) {
      const bool of_B = a.params.B != nullptr && n < 2 * states;
      to = (of_B ? rows.B : rows.C) + first_state + n % states;
      factor = of_B ? T(1) : T(kLn2);
    }
    if (channel < work.channels) param_row(to)[channel] = sum * factor;
  }
  // Of two ranks for each of two channels in a lane, see `weight_sums`.
  __device__ __forceinline__ void finish_weights() const {
    const int active = work.channels - 2 * me.team;
    if (active <= 0) return;
    _Pragma("unroll 1") for (int octet = me.warp; octet < s.octets; octet += s.warps) {
      const Values<T, 4>* from = weight_sums(0) + octet * 32 + me.lane;
      Values<T, 4> sum = *from;
      _Pragma("unroll 1") for (int w = 1; w < used_warps(); ++w) {
        from += shared.at.weight_pieces;
        const Values<T, 4> other = *from;
        MMVMAMBA_UNROLL
        for (int j = 0; j < 4; ++j) sum.v[j] += other.v[j];
      }
      const int r = octet * 8 + 2 * me.run;
      T* to = param_row(r) + 2 * me.team;
      MMVMAMBA_UNROLL
      for (int j = 0; j < 2; ++j, to += s.channels) {
        if (r + j >= s.rank) return;
        const Pair<T> pair = {{sum.v[j] * T(kLog2E), sum.v[2 + j] * T(kLog2E)}};
        if constexpr (kMap) {
          *reinterpret_cast<Pair<T>*>(to) = pair;
        } else {
          to[0] = pair.v[0];
          if (active > 1) to[1] = pair.v[1];
        }
      }
    }
  }

  __device__ __forceinline__ void scan_tile(const Tile& tile, int slot, bool first, bool last) {
    Lane lane;
    Base::read_x(slot, lane.u);
    read_grad_y<io_t>(*this, tile, slot, lane.grad_y);
    MMVMAMBA_UNROLL
    for (int j = 0; j < kStep; ++j) {
      lane.slope[j] = Pair<T>{{T(kSlopeScale<io_t>), T(kSlopeScale<io_t>)}};
    }
    Base::time_steps(tile, slot, lane.dt, [&](int j, const T(&v)[2]) {
      lane.slope[j] = Pair<T>{{slope_of<io_t>(v[0]), slope_of<io_t>(v[1])}};
    });
    if (Base::which == 0 && a.directions.begin && first_state == 0) {
      T sum[2] = {T(0), T(0)};
      MMVMAMBA_UNROLL
      for (int j = 0; j < kStep; ++j) {
        MMVMAMBA_UNROLL
        for (int c = 0; c < 2; ++c) sum[c] += lane.grad_y[j][c] * lane.u[j][c];
      }
      add_sum(1, first, sum);
    }
    T grad_dt[kStep][2];
    if constexpr (kOne) {
      scan_state(tile, 0, slot, first, last, lane, grad_dt);
    } else {
      MMVMAMBA_UNROLL
      for (int j = 0; j < kStep; ++j) grad_dt[j][0] = grad_dt[j][1] = T(0);
      _Pragma("unroll 1") for (int n = 0; n < states; ++n) {
        scan_state(tile, n, slot, first, last, lane, grad_dt);
      }
    }
    MMVMAMBA_UNROLL
    for (int j = 0; j < kStep; ++j) {
      MMVMAMBA_UNROLL
      for (int c = 0; c < 2; ++c) grad_dt[j][c] *= lane.slope[j][c];
    }
    differentiate_steps(tile, slot, first && first_state == 0, grad_dt);
  }

  // One state over a tile. The gradient of the time steps is set for one state, else added to.
  __device__ __forceinline__ void scan_state(const Tile& tile, int n, int slot, bool first,
                                             bool last, const Lane& lane, T (&grad_dt)[kStep][2]) {
    T decay[kStep][2], h[kStep + 1][2], flow[2], B_const[2] = {T(1), T(1)}, C_const[2];
    Base::decays(tile, n, lane.dt, decay);
    MMVMAMBA_UNROLL
    for (int c = 0; c < 2; ++c) {
      if (!kMap && a.params.B != nullptr) B_const[c] = Base::parameter(a.params.B, n, c);
    }
    T C[kStep];
    Base::read_outflow(n, slot, C, C_const);
    Effect<T> effect = {{T(1), T(1)}, {T(0), T(0)}};
    MMVMAMBA_UNROLL
    for (int j = kStep - 1; j >= 0; --j) {
      MMVMAMBA_UNROLL
      for (int c = 0; c < 2; ++c) {
        const T g = lane.grad_y[j][c] * (C[j] * C_const[c]) + effect.add[c];
        effect.add[c] = decay[j][c] * g;
        effect.decay[c] *= decay[j][c];
      }
    }
    T B[kStep];
    load_row(shared.values(slot) + 2 * n * kTilePositions + me.run * kStep, B);
    states_before(tile, n, lane, decay, B, B_const, effect, h);
    const Effect<T> after = scan_team<true>(me, effect);
    if (s.split) {
      const T* to_tile =
          static_cast<const T*>(a.state) +
          (Base::saved_state(tile.first / kTilePositions, n) - static_cast<const T*>(a.states));
      // Zero where the lane's channels are not its own, as y's gradient is.
      flow[0] = me.active > 0 ? to_tile[0] : T(0);
      flow[1] = me.active > 1 ? to_tile[1] : T(0);
    } else {
      Base::scan_block(n, last, effect, flow);
    }
    MMVMAMBA_UNROLL
    for (int c = 0; c < 2; ++c) flow[c] = after.decay[c] * flow[c] + after.add[c];
    differentiate_state(tile, n, slot, first, lane, decay, h, flow, B_const, C_const, grad_dt);
  }

  // The states at the lane's positions: h[j] before and h[j + 1] after the j-th.
  __device__ __forceinline__ void states_before(const Tile& tile, int n, const Lane& lane,
                                                const T (&decay)[kStep][2], const T (&B)[kStep],
                                                const T (&B_const)[2], const Effect<T>& back,
                                                T (&h)[kStep + 1][2]) {
    const T* saved = Base::saved_state(tile.first / kTilePositions, n);
    Effect<T> effect = {{back.decay[0], back.decay[1]}, {T(0), T(0)}};
    MMVMAMBA_UNROLL
    for (int c = 0; c < 2; ++c) {
      h[0][c] = saved[c * me.next];
      MMVMAMBA_UNROLL
      for (int j = 0; j < kStep; ++j) {
        const T add = lane.dt[j][c] * lane.u[j][c] * (B[j] * B_const[c]);
        effect.add[c] = decay[j][c] * effect.add[c] + add;
      }
    }
    const Effect<T> before = scan_team<false>(me, effect);
    MMVMAMBA_UNROLL
    for (int c = 0; c < 2; ++c) {
      h[0][c] = before.decay[c] * h[0][c] + before.add[c];
      MMVMAMBA_UNROLL
      for (int j = 0; j < kStep; ++j) {
        const T add = lane.dt[j][c] * lane.u[j][c] * (B[j] * B_const[c]);
        h[j + 1][c] = decay[j][c] * h[j][c] + add;
      }
    }
  }

  // The lane's positions against the walk, from the flow that comes from later ones. The gradient
  // of x is added to the block's sum.
  __device__ __forceinline__ void differentiate_state(const Tile& tile, int n, int slot, bool set,
                                                      const Lane& lane, const T (&decay)[kStep][2],
                                                      const T (&h)[kStep + 1][2], T (&flow)[2],
                                                      const T (&B_const)[2], const T (&C_const)[2],
                                                      T (&grad_dt)[kStep][2]) {
    const T* values = shared.values(slot) + n * 2 * kTilePositions + me.run * kStep;
    T grad_B[kStep], grad_C[kStep];
    const int32_t* places = Base::lane_places(slot);
    unsigned char* sums = Base::lane_sums();
    T A[2];
    Base::read_rates(n, A);
    A[0] *= T(kLn2);
    A[1] *= T(kLn2);
    T of_A[2] = {T(0), T(0)}, of_B[2] = {T(0), T(0)}, of_C[2] = {T(0), T(0)};
    // Four loads go out before a store, which might alias.
    MMVMAMBA_UNROLL
    for (int first = kStep - 4; first >= 0; first -= 4) {
      T B[4], C[4];
      int32_t place[4];
      load_row(values + first, B);
      load_row(values + kTilePositions + first, C);
      load_row(places + first, place);
      Pair<T> grad_x[4];
      MMVMAMBA_UNROLL
      for (int i = 0; i < 4; ++i) {
        grad_x[i] = *reinterpret_cast<const Pair<T>*>(sums + place[i]);
      }
      MMVMAMBA_UNROLL
      for (int i = 3; i >= 0; --i) {
        const int j = first + i;
        grad_B[j] = grad_C[j] = T(0);
        MMVMAMBA_UNROLL
        for (int c = 0; c < 2; ++c) {
          const T grad_y = lane.grad_y[j][c], x = lane.u[j][c];
          const T dt = lane.dt[j][c];
          const T g = grad_y * (C[i] * C_const[c]) + flow[c];
          const T of_h = grad_y * h[j + 1][c], of_dt_B = g * x;
          flow[c] = decay[j][c] * g;
          const T through_decay = flow[c] * h[j][c];
          of_A[c] += through_decay * dt;
          if (kMap || a.params.B == nullptr) {
            grad_B[j] += of_dt_B * dt;
          } else {
            of_B[c] += of_dt_B * dt;
          }
          if (kMap || a.params.C == nullptr) {
            grad_C[j] += of_h;
          } else {
            of_C[c] += of_h;
          }
          const T b = B[i] * B_const[c];
          grad_x[i].v[c] += g * dt * b;
          const T of_dt = of_dt_B * b + through_decay * A[c];
          if constexpr (kOne) {
            grad_dt[j][c] = of_dt;
          } else {
            grad_dt[j][c] += of_dt;
          }
        }
        *reinterpret_cast<Pair<T>*>(sums + place[i]) = grad_x[i];
      }
    }
    add_sum(2 + n, set, of_A);
    if constexpr (!kMap) {
      if (a.params.B != nullptr) add_sum(2 + states + n, set, of_B);
      if (a.params.C != nullptr) {
        add_sum(2 + (a.params.B != nullptr ? 2 : 1) * states + n, set, of_C);
      }
    }
    write_value_gradients(tile, n, slot, grad_B, grad_C);
  }

  // Whether this is the last of the tiles of channels, whose sum goes to memory.
  __device__ __forceinline__ bool is_last() const {
    return Base::channels + 1 == Base::channel_tiles();
  }

  // The gradients of B and C at the tile's positions, from the terms of the lane's channels.
  __device__ __forceinline__ void write_value_gradients(const Tile& tile, int n, int slot,
                                                        T (&grad_B)[kStep], T (&grad_C)[kStep]) {
    T B, C;
    int i;  // the position whose sums this lane has
    if constexpr (kHasMma<io_t>) {
      // Sums over teams as a product with ones.
      sync_lanes();  // they have left branches apart
      float d[2][2][4];
      const auto add = [&](const T(&terms)[kStep], float (&sums)[2][4]) {
        uint32_t t[4];
        MMVMAMBA_UNROLL
        for (int j = 0; j < 4; ++j) {
          t[j] = movmatrix_trans(pack<io_t>(terms[2 * j], terms[2 * j + 1]));
        }
        const float zero[4] = {0.f, 0.f, 0.f, 0.f};
        const uint32_t ones = pack<io_t>(1.f, 1.f);
        mma_16x8x8<io_t>(sums[0], {t[0], t[1]}, ones, zero);
        mma_16x8x8<io_t>(sums[1], {t[2], t[3]}, ones, zero);
      };
      add(grad_B, d[0]);
      add(grad_C, d[1]);
      // Lane `run` of a team takes matrix `run`.
      const bool odd = me.run & 1;
      B = me.run & 2 ? (odd ? d[0][1][2] : d[0][1][0]) : (odd ? d[0][0][2] : d[0][0][0]);
      C = me.run & 2 ? (odd ? d[1][1][2] : d[1][1][0]) : (odd ? d[1][0][2] : d[1][0][0]);
      i = me.team / 2 * kStep + 2 * me.run + me.team % 2;
    } else {
      B = sum_over_teams(me, grad_B);
      C = sum_over_teams(me, grad_C);
      i = me.run * kStep + me.team;
    }
    Pair<T>& kept =
        shared.template part<Pair<T>>(shared.at.value_sums)[(slot * states + n) * 32 + me.lane];
    if (Base::channels > 0) {
      B += kept.v[0];
      C += kept.v[1];
    }
    if (!is_last()) {
      kept = {{B, C}};
      return;
    }
    if (!tile.has(i)) return;
    C *= T(kLn2);
    const int p = shared.positions(slot)[i];
    if constexpr (kMap) {
      T* to = grad_row(slot, i) + s.rank + first_state + n;
      to[0] = B;
      to[kOne ? 1 : s.states] = C;
    } else {
      const auto write = [&](const RowView& v, T value) {
        if (v.data == nullptr) return;
        T* to =
            at(v.template row<T>(work.sample, work.group, work.direction) + work.part * a.row_part,
               p, v.position);
        to[int64_t{first_state + n} * v.item] = value;
      };
      write(a.grad_B, B);
      write(a.grad_C, C);
    }
  }

  // What follows from the gradients before softplus, times kSlopeScale.
  __device__ __forceinline__ void differentiate_steps(const Tile& tile, int slot, bool set,
                                                      T (&grad)[kStep][2]) {
    if (__builtin_expect(!tile.is_whole(), 0)) {
      MMVMAMBA_UNROLL
      for (int j = 0; j < kStep; ++j) {
        if (!tile.has(me.run * kStep + j)) grad[j][0] = grad[j][1] = T(0);
      }
    }
    T sum[2] = {T(0), T(0)};
    MMVMAMBA_UNROLL
    for (int j = 0; j < kStep; ++j) {
      sum[0] += grad[j][0];
      sum[1] += grad[j][1];
    }
    add_sum(0, set, sum);
    if (kMap || s.rank > 0) {
      differentiate_ranks(tile, slot, set, grad);
    } else {
      write_delta_gradient(tile, slot, grad);
    }
  }

  __device__ __forceinline__ void write_delta_gradient(const Tile& tile, int slot,
                                                       const T (&grad)[kStep][2]) {
    constexpr T kFactor = T(kLog2E) / kSlopeScale<io_t>;
    for (int j = 0; j < kStep; ++j) {
      if (!tile.has(me.run * kStep + j)) continue;
      const int p = shared.positions(slot)[me.run * kStep + j];
      for (int c = 0; c < me.active; ++c) {
        if (s.states > kStateGroup) {
          T* to = at(a.grad_delta.template at<T>(work.sample, work.channel + me.channel + c), p,
                     a.grad_delta.position);
          *to = (first_state == 0 ? T(0) : *to) + grad[j][c] * kFactor;
        } else {
          *at(a.grad_delta.template at<io_t>(work.sample, work.channel + me.channel + c), p,
              a.grad_delta.position) = static_cast<io_t>(grad[j][c] * kFactor);
        }
      }
    }
  }

  // The gradients of dt_weight, added to the warp's sums, and of the low ranks. `set`: these sums
  // are new.
  __device__ __forceinline__ void differentiate_ranks(const Tile& tile, int slot, bool set,
                                                      const T (&grad)[kStep][2]) {
    const bool last = is_last() && first_state + states == (kOne ? 1 : s.states);
    if constexpr (!kHasMma<io_t>) {
      differentiate_ranks_plainly(tile, slot, set, last, grad);
    } else {
      // `z` is the left factor of grad dt_weight (channels, ranks); transposed, that of the ranks'
      // gradient (positions, ranks).
      const float scale = scale_of(grad);
      uint32_t z[2][4], t[2][4];
      sync_lanes();  // they have left branches apart
      MMVMAMBA_UNROLL
      for (int c = 0; c < 2; ++c) {
        MMVMAMBA_UNROLL
        for (int j = 0; j < 4; ++j) {
          z[c][j] = pack<io_t>(grad[2 * j][c] * scale, grad[2 * j + 1][c] * scale);
          t[c][j] = movmatrix_trans(z[c][j]);
        }
      }
      const float unscale = inverse_of_power(scale * kSlopeScale<io_t>);
      if (!last) {
        Values<T, 4>* sums = low_sums<Values<T, 4>>(slot);
        multiply_ranks(slot, set, unscale, z, t, [&](int r, const Values<T, 4>(&product)[2]) {
          sums[8 * r] = product[0];
          sums[8 * r + 32] = product[1];
        });
        return;
      }
      // Of the product for the low ranks, a lane has four positions, each two apart, and two
      // neighboring ranks, which are aligned in memory if the number of ranks is even.
      T* to[4];
      bool has[4];
      MMVMAMBA_UNROLL
      for (int j = 0; j < 4; ++j) {
        const int i = me.team / 2 * kStep + me.team % 2 + 2 * j;
        has[j] = tile.has(i);
        to[j] = grad_row(slot, i) + 2 * me.run;
      }
      if (s.rank % 2 == 0) {
        multiply_ranks(slot, set, unscale, z, t, [&](int r, const Values<T, 4>(&product)[2]) {
          const bool exists = r + 2 * me.run < s.rank;
          MMVMAMBA_UNROLL
          for (int j = 0; j < 4; ++j) {
            const T* from = product[j / 2].v + j % 2 * 2;
            if (exists && has[j]) *reinterpret_cast<Pair<T>*>(to[j] + r) = {{from[0], from[1]}};
          }
        });
      } else {
        multiply_ranks(slot, set, unscale, z, t, [&](int r, const Values<T, 4>(&product)[2]) {
          for (int j = 0; j < 4; ++j) {
            for (int i = 0; i < 2; ++i) {
              const bool exists = r + 2 * me.run + i < s.rank;
              if (exists && has[j]) to[j][r + i] = product[j / 2].v[j % 2 * 2 + i];
            }
          }
        });
      }
    }
  }

  // A power of two by which a tile's gradients of any size become float16; 1 if that is not needed,
  // or if one is not finite.
  __device__ __forceinline__ float scale_of(const T (&grad)[kStep][2]) const {
    if constexpr (!std::is_same_v<io_t, torch::headeronly::Half>) return 1.f;
    float most = 0.f;
    MMVMAMBA_UNROLL
    for (int j = 0; j < kStep; ++j) {
      most = fmaxf(most, fmaxf(fabsf(grad[j][0]), fabsf(grad[j][1])));
    }
    return power_below(max_of_lanes(most));
  }

  // Where the gradient of a position's row begins.
  __device__ __forceinline__ T* grad_row(int slot, int i) const {
    return at(static_cast<T*>(Base::source(&Sources::grad_rows)), shared.positions(slot)[i],
              a.grad_low.position);
  }
  // A tile's sums over tiles of channels and groups of states for the gradient of the low ranks.
  template <typename V>
  __device__ __forceinline__ V* low_sums(int slot) const {
    return shared.template part<V>(shared.at.low_sums) +
           slot * shared.at.low_sum_pieces * int{sizeof(Values<T, 4>) / sizeof(V)} + me.lane;
  }
  __device__ __forceinline__ bool starts_low_sums() const {
    return Base::channels == 0 && first_state == 0;
  }

  // Eight ranks at a time; write(r, product) gets their gradients.
  template <class Write>
  __device__ __forceinline__ void multiply_ranks(int slot, bool set, float unscale,
                                                 const uint32_t (&z)[2][4],
                                                 const uint32_t (&t)[2][4], Write write) {
    const bool first = starts_low_sums();
    const Values<T, 4>* before = low_sums<Values<T, 4>>(slot);
    Values<T, 4>* sums = weight_sums(me.warp) + me.lane;
    const unsigned char* rows = shared.low_rows(slot) + me.lane * shared.at.row_bytes;
    const uint32_t* weights =
        static_cast<const uint32_t*>(Base::source(&Sources::weights)) + 128 + 2 * me.lane;
    const auto multiply = [&](int r) {
      uint32_t low[4];
      ldmatrix_x4_trans(low, rows + 2 * r);
      const float zero[4] = {0.f, 0.f, 0.f, 0.f};
      float of_weight[4], of_ranks[2][4];
      mma_16x8x16<io_t>(of_weight, {z[0][0], z[1][0], z[0][1], z[1][1]}, {low[0], low[1]}, zero);
      mma_16x8x16<io_t>(of_weight, {z[0][2], z[1][2], z[0][3], z[1][3]}, {low[2], low[3]},
                        of_weight);
      const Pair<uint32_t> w =
          *reinterpret_cast<const Pair<uint32_t>*>(weights + r / 8 * kPackedWords);
      mma_16x8x16<io_t>(of_ranks[0], {t[0][0], t[0][1], t[1][0], t[1][1]}, w.v, zero);
      mma_16x8x16<io_t>(of_ranks[1], {t[0][2], t[0][3], t[1][2], t[1][3]}, w.v, zero);
      Values<T, 4> sum = {{0.f, 0.f, 0.f, 0.f}}, product[2] = {sum, sum};
      if (!set) sum = sums[4 * r];
      if (!first) {
        product[0] = before[8 * r];
        product[1] = before[8 * r + 32];
      }
      MMVMAMBA_UNROLL
      for (int i = 0; i < 4; ++i) {
        sum.v[i] += of_weight[i] * unscale;
        product[0].v[i] += of_ranks[0][i] * unscale;
        product[1].v[i] += of_ranks[1][i] * unscale;
      }
      sums[4 * r] = sum;
      write(r, product);
    };
    _Pragma("unroll 1") for (int r = 0; r < s.rank; r += 16) {
      multiply(r);
      if (r + 8 < s.rank) multiply(r + 8);
    }
  }

  // Without tensor cores, a rank at a time.
  __device__ __forceinline__ void differentiate_ranks_plainly(const Tile& tile, int slot, bool set,
                                                              bool last,
                                                              const T (&grad)[kStep][2]) {
    const int i = me.run * kStep + me.team;  // whose sums over the teams this lane gets
    T* to = grad_row(slot, i);
    T* kept = low_sums<T>(slot);
    for (int r = 0; r < s.rank; ++r) {
      T weight[2], low[kStep], sums[kStep], of_weight[2] = {T(0), T(0)};
      read_rank(slot, r, me, shared, Base::source(&Sources::weights), weight, low);
      MMVMAMBA_UNROLL
      for (int j = 0; j < kStep; ++j) {
        sums[j] = (grad[j][0] * weight[0] + grad[j][1] * weight[1]) / kSlopeScale<io_t>;
        of_weight[0] += grad[j][0] * low[j] / kSlopeScale<io_t>;
        of_weight[1] += grad[j][1] * low[j] / kSlopeScale<io_t>;
      }
      T sum = sum_over_teams(me, sums);
      if (!starts_low_sums()) sum += kept[32 * r];
      if (!last) {
        kept[32 * r] = sum;
      } else if (tile.has(i)) {
        to[r] = sum;
      }
      T* totals = weight_sums(me.warp)[r / 8 * 32 + me.team * kTeamLanes + r % 8 / 2].v + r % 2;
      MMVMAMBA_UNROLL
      for (int c = 0; c < 2; ++c) {
        const T of_team = sum_of_team(of_weight[c]);
        if (me.run == 0) totals[2 * c] = set ? of_team : totals[2 * c] + of_team;
      }
    }
  }
};

// What each tile does to the gradient that flows through it.
template <typename io_t, typename grad_t, bool kMap, bool kOne>
struct BackwardLane
    : LaneScan<BackwardLane<io_t, grad_t, kMap, kOne>, ScanBackward, io_t, kMap, kOne, true, true> {
  using Base = LaneScan<BackwardLane, ScanBackward, io_t, kMap, kOne, true, true>;
  using Base::Base;
  using typename Base::T;

  __device__ __forceinline__ void scan_step(const Steps& tile, int slot) {
    Held<grad_t> grad_y[kStep];
    T dt[kStep][2];
    read_grad_y<io_t>(*this, tile, slot, grad_y);
    Base::time_steps(tile, slot, dt, [](int, const T(&)[2]) {});
    _Pragma("unroll 1") for (int n = 0; n < (kOne ? 1 : Base::states); ++n) {
      T decay[kStep][2], C[kStep], C_const[2];
      Base::decays(tile, n, dt, decay);
      Base::read_outflow(n, slot, C, C_const);
      Effect<T> flow = Base::state_at(n);
      MMVMAMBA_UNROLL
      for (int j = kStep - 1; j >= 0; --j) {
        MMVMAMBA_UNROLL
        for (int c = 0; c < 2; ++c) {
          const T g = grad_y[j][c] * (C[j] * C_const[c]) + flow.add[c];
          flow.add[c] = decay[j][c] * g;
          flow.decay[c] *= decay[j][c];
        }
      }
      Base::state_at(n) = flow;
    }
  }
};

template <typename io_t, typename grad_t, bool kMap, bool kOne>
__global__ void __launch_bounds__(most_warps<io_t>(true, kMap&& kOne) * 32, 1)
    backward_kernel(const ScanBackward args) {
  extern __shared__ __align__(16) unsigned char memory[];
  BackwardBlock<io_t, grad_t, kMap, kOne>(args, memory).run();
}

template <typename io_t, typename grad_t, bool kMap, bool kOne>
__global__ void __launch_bounds__(lane_threads<io_t>(kMap&& kOne), 2)
    backward_lane_kernel(const ScanBackward args) {
  extern __shared__ __align__(16) unsigned char memory[];
  BackwardLane<io_t, grad_t, kMap, kOne>(args, memory).run();
}

template <typename io_t>
cudaError_t launch_backward_io(const ScanBackward& args, ScanPass pass, cudaStream_t stream) {
  using T = typename Accumulate<io_t>::type;
  const cudaError_t status = launch_pack_weight<io_t>(args, stream);
  if (status != cudaSuccess) return status;
  const auto launch = [&](auto grad, auto map, auto one) {
    constexpr bool kMap = decltype(map)::value, kOne = decltype(one)::value;
    static std::atomic<uint64_t> raised[2] = {};
    if (pass == ScanPass::kSummary) {
      return launch_blocks<kMostLaneWarps>(backward_lane_kernel<io_t, decltype(grad), kMap, kOne>,
                                           raised[0], args, pass, stream);
    }
    return launch_blocks<most_warps<io_t>(true, kMap && kOne)>(
        backward_kernel<io_t, decltype(grad), kMap, kOne>, raised[1], args, pass, stream);
  };
  const std::true_type yes;
  const std::false_type no;
  if (!args.is_map) return launch(T(), no, no);
  if (args.plan.states > 1) return launch(T(), yes, no);
  return args.grad_y_is_acc ? launch(T(), yes, yes) : launch(io_t(), yes, yes);
}

#define MMVMAMBA_BACKWARD(io_t) \
  template cudaError_t launch_backward_io<io_t>(const ScanBackward&, ScanPass, cudaStream_t)

}  // namespace mmvmamba
