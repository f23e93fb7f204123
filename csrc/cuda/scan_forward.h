// The forward of a block: every chunk of its segment, for each direction of the launch.
#pragma once

#include "scan_block.h"

namespace mmvmamba {

// kGroup: the states that are worked on at a time; 1 keeps a single state's decays in registers.
// kSummary: only the states at the segments' ends and the sums of their time steps, for segments
// that are worked on side by side.
template <typename io_t, int kGroup_, bool kSummary, int kLanes_ = 0>
struct ForwardScan {
  using io = io_t;
  using T = typename Accumulate<io_t>::type;
  using Args = ScanForward;
  static constexpr int kLanes = kLanes_, kGroup = kGroup_, kTile = 16, kWalkers = kSteps / kTile;

  static MMVMAMBA_HD int lanes(const ScanSizes& s) {
    return kLanes > 0 ? kLanes : static_cast<int>(s.lanes);
  }

  // A group of one is the only state.
  static MMVMAMBA_HD int64_t states(const ScanSizes& s) { return kGroup == 1 ? 1 : s.states; }

  struct Thread {
    T dt[kTile];  // one state: its decays, after their sum
    T x[kTile];   // dt x; one state: times B
    T y[kTile];
    T part[kTile];  // of y, of a group of states; unused where there is one
  };

  struct Shared {
    T* rows;            // [2 kGroup][kRowStride], B then C
    T* end;             // [kWalkers][kGroup][lanes]
    T* dt;              // [kWalkers][lanes]
    int32_t* position;  // [kSteps]
    T* low;             // [min(rank, kPanel)][kRowStride]; last: the others are at fixed places
    MMVMAMBA_HD Shared(const ScanSizes& s, void* memory) {
      rows = static_cast<T*>(memory);
      end = rows + 2 * kGroup * kRowStride;
      dt = end + kWalkers * kGroup * lanes(s);
      position = reinterpret_cast<int32_t*>(dt + kWalkers * lanes(s));
      low = reinterpret_cast<T*>(position + kSteps);
    }
    static int64_t size(const ScanSizes& s) {  // bytes
      return sizeof(T) * (smaller(s.rank, kPanel<T>) * kRowStride + 2 * kGroup * kRowStride +
                          kWalkers * (kGroup + 1) * lanes(s)) +
             sizeof(int32_t) * kSteps;
    }
  };

  static MMVMAMBA_HD void keep_slope(Thread&, int, T) {}

  static MMVMAMBA_BLOCK void stage_weights(const Args& a, const Item& item, int64_t k,
                                           int64_t first, const Chunk& chunk, int thread,
                                           int threads, const Shared& shared) {
    const int64_t count = smaller(kGroup, states(a.sizes) - first);
    if (a.B.data != nullptr) {
      stage<io_t, kGroup == 1>(a.B, row_offset(a.B, item, k), first, count, chunk, thread, threads,
                               shared.rows);
    }
    if (a.C.data != nullptr && !kSummary) {
      stage<io_t, kGroup == 1>(a.C, row_offset(a.C, item, k), first, count, chunk, thread, threads,
                               shared.rows + kGroup * kRowStride);
    }
  }

  static MMVMAMBA_BLOCK T rate_of(const Args& a, int64_t k, int64_t state, int64_t channel) {
    const ScanSizes& s = a.sizes;
    return scale_rate<io_t>(static_cast<const T*>(
        a.params.A)[wide_product(row_of(k, states(s), state), s.channels) + channel]);
  }

  // The state at the end of each thread's tile, from zero.
  static MMVMAMBA_BLOCK void scan_tiles(const Args& a, int64_t k, int64_t first, const Place& place,
                                        const Shared& shared, Thread& own) {
    const ScanSizes& s = a.sizes;
    const int begin = place.walker * kTile;
    const int64_t count = smaller(kGroup, states(s) - first);
    for (int i = 0; i < count; ++i) {
      const T rate = rate_of(a, k, first + i, place.channel);
      T B[kTile], h = 0;
      weight_tile(a.params.B, s, first + i, place.channel, shared.rows + i * kRowStride, begin, B);
      MMVMAMBA_UNROLL
      for (int t = 0; t < kTile; ++t) {
        const T decay = decay_of<io_t>(own.dt[t], rate);
        const T input = own.x[t] * B[t];
        if (kGroup == 1) {
          own.dt[t] = decay;
          own.x[t] = input;
        }
        h = decay * h + input;
      }
      shared.end[(place.walker * kGroup + i) * lanes(s) + place.lane] = h;
    }
  }

  // Scans the tiles again from the states that come in, and carries the chunk's end on.
  static MMVMAMBA_BLOCK void finish_tiles(const Args& a, const Item& item, int64_t k, int64_t first,
                                          int64_t done, const Chunk& chunk, const Place& place,
                                          const Shared& shared, Thread& own) {
    const ScanSizes& s = a.sizes;
    const int begin = place.walker * kTile;
    const int64_t count = smaller(kGroup, states(s) - first), half = carry_half(s);
    for (int i = 0; i < count; ++i) {
      const int64_t state = first + i, at = state * s.channels + place.channel;
      const T rate = rate_of(a, k, state, place.channel);
      T* carry =
          static_cast<T*>(a.carry) + state_offset(s, item.sample, k, s.segments, item.segment) + at;
      // Threads of the block still read what came in while the first walker carries on: two halves.
      const T came_in = done == 0 && (s.segments == 1 || kSummary)
                            ? T(0)
                            : carry[kSummary ? 0 : (done & 1) * half];
      if (place.walker == 0) {
        T h = came_in;
        for (int j = 0; j < kWalkers; ++j) {
          h = decay_of<io_t>(shared.dt[j * lanes(s) + place.lane], rate) * h +
              shared.end[(j * kGroup + i) * lanes(s) + place.lane];
        }
        if (place.active) {
          carry[kSummary ? 0 : (1 - (done & 1)) * half] = h;
          if (!kSummary) save_states(a, item, k, chunk, state, place.channel, came_in, h);
        }
      }
      if (kSummary) continue;
      T h = came_in;
      for (int j = 0; j < place.walker; ++j) {
        h = decay_of<io_t>(shared.dt[j * lanes(s) + place.lane], rate) * h +
            shared.end[(j * kGroup + i) * lanes(s) + place.lane];
      }
      T B[kTile], C[kTile];
      if (kGroup > 1) {
        weight_tile(a.params.B, s, state, place.channel, shared.rows + i * kRowStride, begin, B);
      }
      weight_tile(a.params.C, s, state, place.channel, shared.rows + (kGroup + i) * kRowStride,
                  begin, C);
      MMVMAMBA_UNROLL
      for (int t = 0; t < kTile; ++t) {
        const T decay = kGroup == 1 ? own.dt[t] : decay_of<io_t>(own.dt[t], rate);
        h = decay * h + (kGroup == 1 ? own.x[t] : own.x[t] * B[t]);
        if (kGroup == 1) {
          own.y[t] += C[t] * h;
        } else {
          own.part[t] = i == 0 ? C[t] * h : own.part[t] + C[t] * h;
        }
      }
    }
    if constexpr (kGroup > 1 && !kSummary) {  // sums of sums: a long one loses digits
      MMVMAMBA_UNROLL
      for (int t = 0; t < kTile; ++t) own.y[t] += own.part[t];
    }
  }

  static MMVMAMBA_BLOCK void save_states(const Args& a, const Item& item, int64_t k,
                                         const Chunk& chunk, int64_t state, int64_t channel,
                                         T before, T after) {
    const ScanSizes& s = a.sizes;
    if (a.states != nullptr) {
      static_cast<T*>(a.states)[state_offset(s, item.sample, k, s.chunks, chunk.index) +
                                state * s.channels + channel] = before;
    }
    // Only a 1-D sequence has it, whose walk ends with the last chunk.
    if (a.last_state != nullptr && chunk.index + 1 == s.chunks) {
      static_cast<T*>(a.last_state)[(item.sample * s.channels + channel) * states(s) + state] =
          after;
    }
  }

  template <class Block>
  static MMVMAMBA_BLOCK void scan_chunk(Block& block, const Args& a, const Item& item, int which,
                                        int64_t index, int64_t done, const Shared& shared) {
    const ScanSizes& s = a.sizes;
    const int64_t k = a.directions.index[which];
    const Chunk chunk = make_chunk(s, index, shared.position);
    locate(block, s, a.directions.order[which], chunk, shared.position);
    time_steps<ForwardScan>(block, a, item, k, chunk, shared, [&](const Place& place, Thread& own) {
      read_map<io_t, false>(a.x, item.sample, place.channel, chunk, place.walker * kTile, own.x);
      const T* D = static_cast<const T*>(a.params.D);
      const T skip = D == nullptr ? T(0) : D[wide_product(k, s.channels) + place.channel];
      T sum = 0;
      MMVMAMBA_UNROLL
      for (int t = 0; t < kTile; ++t) {
        sum += own.dt[t];
        own.y[t] = skip * own.x[t];
        own.x[t] *= own.dt[t];
      }
      shared.dt[place.walker * lanes(s) + place.lane] = sum;
      scan_tiles(a, k, 0, place, shared, own);
    });
    for (int64_t first = 0; first < states(s); first += kGroup) {
      if (first > 0) {
        block.each([&](int thread, Thread&) {
          stage_weights(a, item, k, first, chunk, thread, block.threads(), shared);
        });
        block.each([&](int thread, Thread& own) {
          scan_tiles(a, k, first, Place(lanes(s), item, thread), shared, own);
        });
      }
      block.each([&](int thread, Thread& own) {
        const Place place(lanes(s), item, thread);
        if (kSummary && place.walker != 0) return;
        finish_tiles(a, item, k, first, done, chunk, place, shared, own);
        if (!place.active || first + kGroup < states(s)) return;
        if (kSummary) {
          add_segment_dt<ForwardScan>(a, item, k, done, place, shared);
        } else {
          write_map<io_t>(a.sum, a.y, a.directions.begin && which == 0,
                          a.directions.end && which + 1 == a.directions.count, item.sample,
                          place.channel, chunk, place.walker * kTile, own.y);
        }
      });
    }
  }

  // Block `index` of the launch. A summary has a block for each direction too.
  template <class Block>
  static MMVMAMBA_BLOCK void run(Block& block, const Args& a, int64_t index, void* memory) {
    const ScanSizes& s = a.sizes;
    const Item item(s, index);
    const Shared shared(s, memory);
    const int64_t begin = item.segment * s.segment_chunks;
    const int64_t end = smaller(s.chunks, begin + s.segment_chunks);
    const int first = kSummary ? static_cast<int>(item.direction) : 0;
    const int last = kSummary ? first + 1 : a.directions.count;
    for (int which = first; which < last; ++which) {
      const bool reversed = is_reversed(a.directions.order[which]);
      for (int64_t done = 0; done < end - begin; ++done) {
        scan_chunk(block, a, item, which, reversed ? end - 1 - done : begin + done, done, shared);
      }
    }
  }
};

}  // namespace mmvmamba
