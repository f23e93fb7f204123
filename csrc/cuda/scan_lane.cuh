// The scan of long walks: each lane scans one tile of 32 positions by itself. A long walk has
// enough tiles for this, and no state passes between lanes. The first pass, the summary, finds the
// effect of each tile on a state. scan_combine.cu combines these effects. In the forward, a second
// pass then scans each tile from the state before it. A warp has 16 channels and four tiles of
// positions, and takes eight positions of each tile at a time. They are assigned to lanes like the
// 32 positions of a tile in scan_tile.cuh. The warps of a block share the rows of proj.
#pragma once

#include "scan_inputs.cuh"

namespace mmvmamba {

// Scan: its scan_step() processes eight positions of each lane. kSummary: the first pass, in which
// a block has one direction of the launch. In the second it has all of them, one after the other.
template <class Scan, class Args, typename io_t, bool kMap, bool kOne, bool kSummary, bool kBack>
struct LaneScan : ScanInputs<Args, io_t, kMap, kOne, kBack> {
  using Base = ScanInputs<Args, io_t, kMap, kOne, kBack>;
  using Base::a, Base::s, Base::work, Base::shared, Base::me, Base::which;
  using Base::states, Base::first_state;
  using typename Base::T;

  int first_tile = 0;  // of four
  Effect<T> state;     // the lane's only state: its value, and the product of the decays so far

  __device__ __forceinline__ LaneScan(const Args& args, unsigned char* memory)
      : Base(args, memory,
             memory + args.plan.shared.own +
                 static_cast<int>(threadIdx.x) / 32 * args.plan.shared.own_bytes) {}

  __device__ __forceinline__ Scan& scan() { return static_cast<Scan&>(*this); }

  __device__ __forceinline__ void run() {
    const int first = kSummary ? work.direction : 0;
    const int last = kSummary ? first + 1 : a.directions.count;
    for (which = first; which < last; ++which) {
      work.direction = a.directions.index[which];
      work.set_tile(s, me.warp);
      me.template at<kMap>(work.channels);
      if (is_busy()) set_up();
      const int end = work.first_tile + work.tiles;
      for (first_tile = work.first_tile; first_tile < end; first_tile += kTeamLanes) {
        for (first_state = 0; first_state < (kOne ? 1 : s.states); first_state += kStateGroup) {
          states = kOne ? 1 : smaller(s.states - first_state, kStateGroup);
          scan_tiles();
        }
      }
    }
  }

  // The block with the last channels may have more warps than tiles of channels.
  __device__ __forceinline__ bool is_busy() const { return work.channels > 0; }

  __device__ __forceinline__ void set_up() {
    sync_lanes();  // all have finished the previous direction
    if (me.lane == 0) {
      if (kSummary || which == 0) {
        Base::set_maps();
        if (!kSummary) Base::set_outputs();
      }
      Base::set_rows(a.state);
    }
    Base::set_constants(me.lane);
    if (!kSummary && which + 1 == a.directions.count) Base::set_skip(me.lane);
    if (!kPositionRows<io_t> && (kMap || s.rank > 0)) {
      stage_weights(s, a.params.dt_weight, work, shared, me.lane, 32);
    }
    sync_lanes();
  }

  __device__ __forceinline__ void scan_tiles() {
    const bool reversed = is_reversed(a.directions.order[which]);
    if (is_busy()) start_states();
    _Pragma("unroll 1") for (int i = 0; i < kTeamLanes; ++i) {
      const int step = kBack ? kTeamLanes - 1 - i : i, slot = step & (s.slots - 1);  // in the walk
      if ((i & (s.slots - 1)) == 0) {
        __syncthreads();  // all are done with the previous rows
        stage_rows(step - slot, reversed);
        __syncthreads();
      }
      if (is_busy()) {
        sync_lanes();  // they have left branches apart
        scan().scan_step(Steps(s, first_tile, step, reversed), slot);
      }
    }
    if (is_busy()) finish_states();
  }

  __device__ __forceinline__ void stage_rows(int first, bool reversed) {
    const io_t* rows = Base::rows();
    _Pragma("unroll 1") for (int i = me.warp; i < s.slots; i += s.warps) {
      stage<io_t, kMap>(s, Steps(s, first_tile, first + i, reversed), work,
                        along_columns(a.directions.order[which]), i, me, shared, rows, a.B, a.C,
                        first_state, states);
    }
  }

  // A single state is kept in registers, several in shared memory. Their place does not depend on
  // how many the group has: warps begin a group at different times.
  __device__ __forceinline__ Effect<T>& state_at(int n) {
    if constexpr (kOne) return state;
    const int first = me.warp * smaller(s.states, kStateGroup);
    return shared.template part<Effect<T>>(shared.at.carry)[(first + n) * 32 + me.lane];
  }
  __device__ __forceinline__ bool has_tile() const {
    return me.active > 0 && first_tile + me.run < s.axis_tiles;
  }

  __device__ __forceinline__ void start_states() {
    for (int n = 0; n < states; ++n) {
      Effect<T> start = {{T(1), T(1)}, {T(0), T(0)}};
      if (!kSummary && has_tile()) {
        const T* from = Base::saved_state(first_tile + me.run, n);
        start.add[0] = from[0];
        start.add[1] = from[me.next];
      }
      state_at(n) = start;
    }
  }

  // Writes the effects of the tiles on the states (summary) or the states at the end of the walk.
  __device__ __forceinline__ void finish_states() {
    if (!has_tile()) return;
    const int tile = first_tile + me.run;
    if constexpr (kSummary) {
      for (int n = 0; n < states; ++n) {
        const Effect<T> effect = state_at(n);
        T* to = Base::saved_state(tile, n);
        T* decay = static_cast<T*>(a.decay) + (to - static_cast<const T*>(a.state));
        for (int c = 0; c < me.active; ++c) {
          to[c] = effect.add[c];
          decay[c] = effect.decay[c];
        }
      }
    } else if (tile + 1 == s.axis_tiles) {
      scan().write_last_states();
    }
  }
};

}  // namespace mmvmamba
