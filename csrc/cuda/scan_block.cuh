// The scan by a block, which the forward and the backward share. A block scans a segment of the
// axis for each direction of the launch and each tile of its channels. It does so in rounds of one
// tile for each warp: warp w has tile w of a round, and the warps combine the effects of their
// tiles on a state through shared memory. The sum over directions stays there until the end.
#pragma once

#include "scan_inputs.cuh"

namespace mmvmamba {

// Scan: its scan_tile() processes a tile, finish_states() ends a group of states of a tile of
// channels, and write_sums() writes the block's sum.
template <class Scan, class Args, typename io_t, bool kMap, bool kOne, bool kBack>
struct BlockScan : ScanInputs<Args, io_t, kMap, kOne, kBack> {
  using Base = ScanInputs<Args, io_t, kMap, kOne, kBack>;
  using Base::a, Base::s, Base::work, Base::shared, Base::me, Base::which;
  using Base::states, Base::first_state;
  using typename Base::T;

  int channels = 0;        // the tile of channels
  int turn = 0, step = 0;  // rounds, and states of rounds, that the block has begun

  __device__ __forceinline__ BlockScan(const Args& args, unsigned char* memory)
      : Base(args, memory, memory) {}

  __device__ __forceinline__ Scan& scan() { return static_cast<Scan&>(*this); }

  __device__ __forceinline__ void run() {
    clear_sums();
    for (which = 0; which < a.directions.count; ++which) {
      work.direction = a.directions.index[which];
      for (channels = 0; channels < channel_tiles(); ++channels) scan_channels();
    }
    scan().write_sums();
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
    const int thread = static_cast<int>(threadIdx.x);
    work.set_tile(s, channels);
    me.template at<kMap>(work.channels);
    __syncthreads();  // all have left the last tile
    if (thread == 0) scan().set_sources();
    Base::set_constants(thread);
    if (!kPositionRows<io_t> && (kMap || s.rank > 0)) {
      stage_weights(s, a.params.dt_weight, work, shared, thread, static_cast<int>(blockDim.x));
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

  __device__ __forceinline__ void set_sources() const {
    Base::set_maps();
    Base::set_rows(a.states);
    shared.sources().rows = Base::rows();
  }

  __device__ __forceinline__ void scan_segment() {
    const bool reversed = is_reversed(a.directions.order[which]);
    const bool columns = along_columns(a.directions.order[which]);
    const int count = work.tiles;
    const bool fresh = channels == 0 || !s.keep_rows;
    _Pragma("unroll 1") for (int index = me.warp; index - me.warp < count; index += s.warps) {
      if (index >= count) {  // it has no tile in the last round
        for (int n = 0; !s.split && n < states; ++n) sync_block();
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
            kMap || s.rank > 0 ? static_cast<const io_t*>(Base::source(&Sources::rows)) : nullptr,
            a.B, a.C, first_state, states);
        sync_lanes();
      }
      scan().scan_tile(tile, slot, index == me.warp, index + 1 == count || me.warp + 1 == s.warps);
      ++turn;
    }
  }

  // The states before the walk, into the half of `carry` that the next round reads.
  __device__ __forceinline__ void start_states() {
    if (s.split) return;
    Pair<T>* carry = carry_at(turn);
    for (int i = threadIdx.x; i < states * kTeams; i += blockDim.x) carry[i] = {{T(0), T(0)}};
  }
  __device__ __forceinline__ Pair<T>* carry_at(int when) const {
    return shared.template part<Pair<T>>(shared.at.carry) + (when & 1) * states * kTeams;
  }

  // Sets `start` to the state before this warp's tile. Each warp stores the effect of its tile, and
  // the last warp the state from which the next round starts. Both buffers have two halves that
  // take turns, so one barrier is enough.
  __device__ __forceinline__ void scan_block(int n, bool last, const Effect<T>& tile,
                                             T (&start)[2]) {
    const bool at_end = me.run == (kBack ? 0 : kTeamLanes - 1);  // whose effect is its team's
    Effect<T>* ends =
        shared.template part<Effect<T>>(shared.at.ends) + (step & 1) * s.warps * kTeams + me.team;
    ++step;
    if (at_end) ends[me.warp * kTeams] = tile;
    sync_block();
    Pair<T> h = carry_at(turn)[n * kTeams + me.team];
    _Pragma("unroll 2") for (int w = 0; w < me.warp; ++w, ends += kTeams) {
      const Effect<T> end = *ends;
      MMVMAMBA_UNROLL
      for (int c = 0; c < 2; ++c) h.v[c] = end.decay[c] * h.v[c] + end.add[c];
    }
    start[0] = h.v[0];
    start[1] = h.v[1];
    if (last && at_end) {
      MMVMAMBA_UNROLL
      for (int c = 0; c < 2; ++c) h.v[c] = tile.decay[c] * h.v[c] + tile.add[c];
      carry_at(turn + 1)[n * kTeams + me.team] = h;
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
      work.set_tile(s, channels);
      const int c = work.channel, active = work.channels;
      __syncthreads();
      Base::set_skip(static_cast<int>(threadIdx.x));
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
          write_position<8>(place, active, map, from, sum, to);
        } else {
          write_position<1>(place, active, map, from, sum, to);
        }
      }
    }
  }

  // A position of the tile's channels, kWidth at a time.
  template <int kWidth, typename V>
  __device__ __forceinline__ void write_position(int32_t place, int active, const MapView& map,
                                                 const V* from, T* sum, io_t* out) {
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
      const Values<T, kWidth> skip =
          *reinterpret_cast<const Values<T, kWidth>*>(Base::skips() + first);
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

}  // namespace mmvmamba
