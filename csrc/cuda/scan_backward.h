// The backward of a block: the chunks of its segment against the walk, for each direction of the
// launch. States are computed again inside a chunk, from those saved before it.
//
// Every sum has one order, whatever the machine: over a tile in a thread, over the tiles of a chunk
// and the channels of a block by threads that own a result, over chunks one after the other, over
// blocks by the caller.
#pragma once

#include "scan_block.h"

namespace mmvmamba {

// kGroup, kSummary: as in the forward; a summary is of the gradients that flow back.
template <typename io_t, int kGroup_, bool kSummary, int kLanes_ = 0>
struct BackwardScan {
  using io = io_t;
  using T = typename Accumulate<io_t>::type;
  using Args = ScanBackward;
  static constexpr int kLanes = kLanes_, kGroup = kGroup_, kTile = 8, kWalkers = kSteps / kTile;

  static MMVMAMBA_HD int lanes(const ScanSizes& s) {
    return kLanes > 0 ? kLanes : static_cast<int>(s.lanes);
  }

  // A group of one is the only state.
  static MMVMAMBA_HD int64_t states(const ScanSizes& s) { return kGroup == 1 ? 1 : s.states; }

  struct Thread {
    T dt[kTile], slope[kTile], x[kTile], grad_y[kTile];
    T grad_x[kTile], grad_dt[kTile], h[kTile];
    T part_x[kTile], part_dt[kTile];  // of a group of states; unused where there is one
    T grad_bias, grad_D;              // sums over the thread's tiles
  };

  struct Shared {
    T* rows;            // [2 kGroup][kRowStride], B then C, gradients in the end
    T* end;             // [kWalkers][kGroup][lanes], the states at the tiles' ends
    T* grad_end;        // [kWalkers][kGroup][lanes], the gradients at the tiles' beginnings
    T* dt;              // [kWalkers][lanes]
    T* sums;            // [3][kWalkers][lanes]
    T* tile;            // [kSteps][lanes + 1]
    T* part;            // [threads / kSteps][kSteps]
    T* low;             // [min(rank, kPanel)][kRowStride], gradients in the end
    T* weight;          // [rank][lanes], where the sums of grad dt_weight are kept on chip
    int32_t* position;  // [kSteps]

    MMVMAMBA_HD Shared(const ScanSizes& s, void* memory) {
      rows = static_cast<T*>(memory);
      end = rows + 2 * kGroup * kRowStride;
      grad_end = end + kWalkers * kGroup * lanes(s);
      dt = grad_end + kWalkers * kGroup * lanes(s);
      sums = dt + kWalkers * lanes(s);
      part = sums + 3 * kWalkers * lanes(s);
      position = reinterpret_cast<int32_t*>(part + kWalkers * lanes(s));
      tile = reinterpret_cast<T*>(position + kSteps);
      low = tile + (kSummary ? 0 : kSteps * (lanes(s) + 1));
      weight = low + smaller(s.rank, kPanel<T>) * kRowStride;
    }
    static int64_t size(const ScanSizes& s, bool keep_weight) {  // bytes
      int64_t values = smaller(s.rank, kPanel<T>) * kRowStride + 2 * kGroup * kRowStride +
                       kWalkers * (2 * kGroup + 5) * lanes(s);
      if (!kSummary) values += kSteps * (lanes(s) + 1) + (keep_weight ? s.rank * lanes(s) : 0);
      return sizeof(T) * values + sizeof(int32_t) * kSteps;
    }
  };

  static MMVMAMBA_HD void keep_slope(Thread& own, int t, T slope) { own.slope[t] = slope; }

  static MMVMAMBA_BLOCK void stage_weights(const Args& a, const Item& item, int64_t k,
                                           int64_t first, const Chunk& chunk, int thread,
                                           int threads, const Shared& shared) {
    const int64_t count = smaller(kGroup, states(a.sizes) - first);
    if (a.B.data != nullptr && !kSummary) {
      stage<io_t, kGroup == 1>(a.B, row_offset(a.B, item, k), first, count, chunk, thread, threads,
                               shared.rows);
    }
    if (a.C.data != nullptr) {
      stage<io_t, kGroup == 1>(a.C, row_offset(a.C, item, k), first, count, chunk, thread, threads,
                               shared.rows + kGroup * kRowStride);
    }
  }

  // A state's rate, weights and decays on a thread's tile.
  struct State {
    T A, rate, B[kTile], C[kTile], decay[kTile];  // rate: scaled
    MMVMAMBA_BLOCK State(const Args& a, int64_t k, int64_t state, int i, const Place& place,
                         const Shared& shared, const Thread& own) {
      const ScanSizes& s = a.sizes;
      const int begin = place.walker * kTile;
      A = static_cast<const T*>(
          a.params.A)[wide_product(row_of(k, states(s), state), s.channels) + place.channel];
      rate = scale_rate<io_t>(A);
      if (!kSummary) {
        weight_tile(a.params.B, s, state, place.channel, shared.rows + i * kRowStride, begin, B);
      }
      weight_tile(a.params.C, s, state, place.channel, shared.rows + (kGroup + i) * kRowStride,
                  begin, C);
      MMVMAMBA_UNROLL
      for (int t = 0; t < kTile; ++t) decay[t] = decay_of<io_t>(own.dt[t], rate);
    }
  };

  // What leaves each thread's tile at either side if nothing comes in.
  static MMVMAMBA_BLOCK void scan_tiles(const Args& a, int64_t k, int64_t first, const Place& place,
                                        const Shared& shared, Thread& own) {
    const ScanSizes& s = a.sizes;
    const int64_t count = smaller(kGroup, states(s) - first);
    for (int i = 0; i < count; ++i) {
      const State state(a, k, first + i, i, place, shared, own);
      const int64_t at = (place.walker * kGroup + i) * lanes(s) + place.lane;
      if (!kSummary) {
        T h = 0;
        MMVMAMBA_UNROLL
        for (int t = 0; t < kTile; ++t) {
          h = state.decay[t] * h + own.dt[t] * own.x[t] * state.B[t];
        }
        shared.end[at] = h;
      }
      T g = 0;
      MMVMAMBA_UNROLL
      for (int t = kTile - 1; t >= 0; --t) {
        g = state.decay[t] * (own.grad_y[t] * state.C[t] + g);
      }
      shared.grad_end[at] = g;
    }
  }

  static MMVMAMBA_BLOCK T step(T rate, const ScanSizes& s, const Place& place, const T* ends,
                               const Shared& shared, int walker, int i, T value) {
    return decay_of<io_t>(shared.dt[walker * lanes(s) + place.lane], rate) * value +
           ends[(walker * kGroup + i) * lanes(s) + place.lane];
  }

  // The gradient that flows into a thread's tile from later ones; the first walker, whose tile is
  // the last to be reached, carries on what leaves the chunk.
  static MMVMAMBA_BLOCK T gradient_in(const Args& a, const Item& item, int64_t k, int64_t state,
                                      int i, int64_t done, T rate, const Place& place,
                                      const Shared& shared) {
    const ScanSizes& s = a.sizes;
    const int64_t half = carry_half(s);
    T* carry = static_cast<T*>(a.carry) +
               state_offset(s, item.sample, k, s.segments, item.segment) + state * s.channels +
               place.channel;
    T g =
        done == 0 && (s.segments == 1 || kSummary) ? T(0) : carry[kSummary ? 0 : (done & 1) * half];
    for (int j = kWalkers - 1; j > place.walker; --j) {
      g = step(rate, s, place, shared.grad_end, shared, j, i, g);
    }
    if (place.walker == 0 && place.active) {
      carry[kSummary ? 0 : (1 - (done & 1)) * half] =
          step(rate, s, place, shared.grad_end, shared, 0, i, g);
    }
    return g;
  }

  // The state that comes into a thread's tile.
  static MMVMAMBA_BLOCK T state_in(const Args& a, const Item& item, int64_t k, int64_t state, int i,
                                   const Chunk& chunk, T rate, const Place& place,
                                   const Shared& shared) {
    const ScanSizes& s = a.sizes;
    T h = static_cast<const T*>(a.states)[state_offset(s, item.sample, k, s.chunks, chunk.index) +
                                          state * s.channels + place.channel];
    for (int j = 0; j < place.walker; ++j) {
      h = step(rate, s, place, shared.end, shared, j, i, h);
    }
    return h;
  }

  // The adjoint of one state on a thread's tile. Leaves the terms of grad B in the shared tile,
  // the states in `own.h`, and the tile's sums for grad A and constant B and C in shared memory.
  static MMVMAMBA_BLOCK void differentiate_state(const Args& a, const Item& item, int64_t k,
                                                 int64_t index, int i, int64_t done,
                                                 const Chunk& chunk, const Place& place,
                                                 const Shared& shared, Thread& own) {
    const ScanSizes& s = a.sizes;
    const State state(a, k, index, i, place, shared, own);
    const T before = state_in(a, item, k, index, i, chunk, state.rate, place, shared);
    T carried = gradient_in(a, item, k, index, i, done, state.rate, place, shared);
    MMVMAMBA_UNROLL
    for (int t = 0; t < kTile; ++t) {
      own.h[t] = state.decay[t] * (t == 0 ? before : own.h[t == 0 ? 0 : t - 1]) +
                 own.dt[t] * own.x[t] * state.B[t];
    }
    T sum_A = 0, sum_B = 0, sum_C = 0;
    MMVMAMBA_UNROLL
    for (int t = kTile - 1; t >= 0; --t) {
      const T g = own.grad_y[t] * state.C[t] + carried;  // of h_t
      const T grad_B = g * (own.dt[t] * own.x[t]);
      sum_B += grad_B;
      sum_C += own.grad_y[t] * own.h[t];
      if (a.B.data != nullptr) put(s, place, shared, t, grad_B);
      carried = g * state.decay[t];
      const T through_decay = carried * (t == 0 ? before : own.h[t == 0 ? 0 : t - 1]);
      const T through_B = g * state.B[t];
      sum_A += through_decay * own.dt[t];
      const T grad_x = own.dt[t] * through_B;
      const T grad_dt = own.x[t] * through_B + through_decay * state.A;
      if (kGroup == 1) {
        own.grad_x[t] += grad_x;
        own.grad_dt[t] = grad_dt;
      } else {
        own.part_x[t] = i == 0 ? grad_x : own.part_x[t] + grad_x;
        own.part_dt[t] = i == 0 ? grad_dt : own.part_dt[t] + grad_dt;
      }
    }
    T* sums = shared.sums + place.walker * lanes(s) + place.lane;
    sums[0] = sum_A;
    sums[kWalkers * lanes(s)] = sum_B;
    sums[2 * kWalkers * lanes(s)] = sum_C;
  }

  // Puts a term of a sum over channels into the shared tile.
  static MMVMAMBA_BLOCK void put(const ScanSizes& s, const Place& place, const Shared& shared,
                                 int t, T value) {
    shared.tile[(place.walker * kTile + t) * (lanes(s) + 1) + place.lane] =
        place.active ? value : T(0);
  }

  // Sums of the shared tile over runs of channels, then over those sums: each phase for itself.
  static MMVMAMBA_BLOCK void sum_runs(const ScanSizes& s, int thread, int threads,
                                      const Shared& shared) {
    const int runs = threads / kSteps, l = thread % kSteps, run = thread / kSteps;
    const int width = lanes(s) / runs;  // threads = lanes x kWalkers: it divides
    T sum = 0;
    for (int c = run * width; c < (run + 1) * width; ++c) {
      sum += shared.tile[l * (lanes(s) + 1) + c];
    }
    shared.part[run * kSteps + l] = sum;
  }
  static MMVMAMBA_BLOCK void sum_parts(int thread, int threads, const Shared& shared, T* row) {
    if (thread >= kSteps) return;
    T sum = 0;
    for (int run = 0; run < threads / kSteps; ++run) sum += shared.part[run * kSteps + thread];
    row[thread] = sum;
  }

  // Adds the tiles' sums to a row of the parameters' gradients, which the first chunk sets.
  static MMVMAMBA_BLOCK void add_sums(const Args& a, const Item& item, int64_t k, int64_t row,
                                      bool set, const Place& place, const T* sums) {
    const ScanSizes& s = a.sizes;
    if (place.walker != 0 || !place.active) return;
    T sum = 0;
    for (int j = 0; j < kWalkers; ++j) sum += sums[j * lanes(s) + place.lane];
    T& total = param_row(a, item, k, row)[place.channel];
    total = set ? sum : total + sum;
  }
  static MMVMAMBA_BLOCK T* param_row(const Args& a, const Item& item, int64_t k, int64_t row) {
    const ScanSizes& s = a.sizes;
    const ParamRows rows(s, a.B.data == nullptr, a.C.data == nullptr);
    return static_cast<T*>(a.grad_params) +
           wide_product(
               row_of(row_of(row_of(item.sample, s.segments, item.segment), s.directions, k),
                      rows.count, row),
               s.channels);
  }

  // The states of a group, one after the other.
  template <class Block>
  static MMVMAMBA_BLOCK void differentiate_group(Block& block, const Args& a, const Item& item,
                                                 int64_t k, int64_t first, int64_t done,
                                                 const Chunk& chunk, const Shared& shared) {
    const ScanSizes& s = a.sizes;
    const bool shared_B = a.B.data != nullptr, shared_C = a.C.data != nullptr;
    const ParamRows rows(s, !shared_B, !shared_C);
    const int count = static_cast<int>(smaller(kGroup, states(s) - first));
    const int64_t tiles = kWalkers * lanes(s);
    for (int i = 0; i < count; ++i) {
      const int64_t state = first + i;
      block.each([&](int thread, Thread& own) {
        differentiate_state(a, item, k, state, i, done, chunk, Place(lanes(s), item, thread),
                            shared, own);
      });
      block.each([&](int thread, Thread&) {
        const Place place(lanes(s), item, thread);
        add_sums(a, item, k, rows.A + state, done == 0, place, shared.sums);
        if (!shared_B) {
          add_sums(a, item, k, rows.B + state, done == 0, place, shared.sums + tiles);
        }
        if (!shared_C) {
          add_sums(a, item, k, rows.C + state, done == 0, place, shared.sums + 2 * tiles);
        }
        if (shared_B) sum_runs(s, thread, block.threads(), shared);
      });
      block.each([&](int thread, Thread& own) {
        if (shared_B) {
          sum_parts(thread, block.threads(), shared, shared.rows + i * kRowStride);
        }
        if (!shared_C) return;
        const Place place(lanes(s), item, thread);
        MMVMAMBA_UNROLL
        for (int t = 0; t < kTile; ++t) put(s, place, shared, t, own.grad_y[t] * own.h[t]);
      });
      if (!shared_C) continue;
      block.each([&](int thread, Thread&) { sum_runs(s, thread, block.threads(), shared); });
      block.each([&](int thread, Thread&) {
        sum_parts(thread, block.threads(), shared, shared.rows + (kGroup + i) * kRowStride);
      });
    }
    block.each([&](int thread, Thread& own) {
      if constexpr (kGroup > 1) {  // sums of sums: a long one loses digits
        MMVMAMBA_UNROLL
        for (int t = 0; t < kTile; ++t) {
          own.grad_x[t] += own.part_x[t];
          own.grad_dt[t] += own.part_dt[t];
        }
      }
      write_rows<kGroup == 1>(a.grad_B, a.row_part, item, k, first, count, chunk, thread,
                              block.threads(), shared.rows);
      write_rows<kGroup == 1>(a.grad_C, a.row_part, item, k, first, count, chunk, thread,
                              block.threads(), shared.rows + kGroup * kRowStride);
    });
  }

  template <bool kOne, bool kRanks = false>
  static MMVMAMBA_BLOCK void write_rows(const RowView& v, int64_t part, const Item& item, int64_t k,
                                        int64_t first, int64_t count, const Chunk& chunk,
                                        int thread, int threads, const T* rows) {
    if (v.data == nullptr) return;
    unstage<kOne, kRanks>(v, item.part * part + row_offset(v, item, k), first, count, chunk, thread,
                          threads, rows);
  }

  // grad_weight[r][c] += sum over steps of grad_dt[l][c] low[r][l]; a thread owns its (r, c).
  static MMVMAMBA_BLOCK void add_weight(const Args& a, const Item& item, int64_t k, int64_t first,
                                        int64_t count, bool set, const Place& place,
                                        const Shared& shared) {
    if (!place.active) return;
    const int n = static_cast<int>(count);
    int r = place.walker;
    for (; r + (kRanks - 1) * kWalkers < n; r += kRanks * kWalkers) {
      add_weights<kRanks>(a, item, k, first, r, set, place, shared);
    }
    for (; r < n; r += kWalkers) add_weights<1>(a, item, k, first, r, set, place, shared);
  }

  // Ranks that a thread works on at a time, for each value of the tile that it reads.
  static constexpr int kRanks = 3;

  template <int kCount>
  static MMVMAMBA_BLOCK void add_weights(const Args& a, const Item& item, int64_t k, int64_t first,
                                         int r, bool set, const Place& place,
                                         const Shared& shared) {
    const ScanSizes& s = a.sizes;
    T sum[kCount];
    fill_tile(T(0), sum);
    for (int l = 0; l < kSteps; l += kTile) {
      T grad_dt[kTile];
      MMVMAMBA_UNROLL
      for (int t = 0; t < kTile; ++t) {
        grad_dt[t] = shared.tile[(l + t) * (lanes(s) + 1) + place.lane];
      }
      MMVMAMBA_UNROLL
      for (int j = 0; j < kCount; ++j) {
        T low[kTile];
        load_tile(shared.low + (r + j * kWalkers) * kRowStride + l, low);
        MMVMAMBA_UNROLL
        for (int t = 0; t < kTile; ++t) sum[j] += grad_dt[t] * low[t];
      }
    }
    MMVMAMBA_UNROLL
    for (int j = 0; j < kCount; ++j) {
      const int64_t rank = first + r + j * kWalkers;
      T& total = a.keep_weight_on_chip ? shared.weight[rank * lanes(s) + place.lane]
                                       : param_row(a, item, k, rank)[place.channel];
      total = set ? sum[j] : total + sum[j];
    }
  }

  // grad_low[r][l] = sum over the block's channels of grad_dt[l][c] weight[r][c].
  static MMVMAMBA_BLOCK void set_low(const Args& a, const Item& item, int64_t k, int64_t first,
                                     int64_t count, int thread, int threads, const Shared& shared) {
    const int l = thread % kSteps, runs = threads / kSteps, n = static_cast<int>(count);
    int r = thread / kSteps;
    for (; r + (kRanks - 1) * runs < n; r += kRanks * runs) {
      set_lows<kRanks>(a, item, k, first, r, runs, l, shared);
    }
    for (; r < n; r += runs) set_lows<1>(a, item, k, first, r, runs, l, shared);
  }

  template <int kCount>
  static MMVMAMBA_BLOCK void set_lows(const Args& a, const Item& item, int64_t k, int64_t first,
                                      int r, int runs, int l, const Shared& shared) {
    const ScanSizes& s = a.sizes;
    const T* weight = static_cast<const T*>(a.params.dt_weight) +
                      wide_product(row_of(k, s.rank, first + r), s.channels) + item.channel;
    const T* tile = shared.tile + l * (lanes(s) + 1);
    const int width = static_cast<int>(item.width);
    const int32_t stride = static_cast<int32_t>(s.channels * sizeof(T));
    const T* row[kCount];
    T sum[kCount];
    MMVMAMBA_UNROLL
    for (int j = 0; j < kCount; ++j) {
      row[j] = &element<const T>(weight, j * runs, stride);
      sum[j] = 0;
    }
    MMVMAMBA_UNROLL_4
    for (int c = 0; c < width; ++c) {
      const T value = tile[c];
      MMVMAMBA_UNROLL
      for (int j = 0; j < kCount; ++j) sum[j] += value * row[j][c];
    }
    MMVMAMBA_UNROLL
    for (int j = 0; j < kCount; ++j) shared.low[(r + j * runs) * kRowStride + l] = sum[j];
  }

  // The gradients of the time steps' projection.
  template <class Block>
  static MMVMAMBA_BLOCK void differentiate_ranks(Block& block, const Args& a, const Item& item,
                                                 int64_t k, int64_t done, const Chunk& chunk,
                                                 const Shared& shared) {
    const ScanSizes& s = a.sizes;
    for (int64_t first = 0; first < s.rank; first += kPanel<T>) {
      const int64_t count = smaller(kPanel<T>, s.rank - first);
      if (s.rank > kPanel<T>) {
        block.each([&](int thread, Thread&) {
          stage<io_t, false, true>(a.low, row_offset(a.low, item, k), first, count, chunk, thread,
                                   block.threads(), shared.low);
        });
      }
      block.each([&](int thread, Thread&) {
        add_weight(a, item, k, first, count, done == 0, Place(lanes(s), item, thread), shared);
      });
      block.each([&](int thread, Thread&) {
        set_low(a, item, k, first, count, thread, block.threads(), shared);
      });
      block.each([&](int thread, Thread&) {
        write_rows<false, true>(a.grad_low, a.low_part, item, k, first, count, chunk, thread,
                                block.threads(), shared.low);
      });
    }
  }

  // A thread's map gradients, and the gradients before softplus into the shared tile.
  static MMVMAMBA_BLOCK void finish_maps(const Args& a, const Item& item, int which,
                                         const Chunk& chunk, const Place& place,
                                         const Shared& shared, Thread& own) {
    const ScanSizes& s = a.sizes;
    T grad_bias = 0;
    MMVMAMBA_UNROLL
    for (int t = 0; t < kTile; ++t) {
      own.grad_dt[t] *= own.slope[t];
      grad_bias += own.grad_dt[t];
      if (s.rank > 0) put(s, place, shared, t, own.grad_dt[t]);
    }
    own.grad_bias += grad_bias;
    if (!place.active) return;
    const int begin = place.walker * kTile;
    if (s.rank == 0) {
      write_map<io_t>(a.grad_delta, a.grad_delta, true, true, item.sample, place.channel, chunk,
                      begin, own.grad_dt);
    }
    write_map<io_t>(a.sum, a.grad_x, a.directions.begin && which == 0,
                    a.directions.end && which + 1 == a.directions.count, item.sample, place.channel,
                    chunk, begin, own.grad_x);
  }

  // Reads the maps of a thread's tile.
  static MMVMAMBA_BLOCK void start_maps(const Args& a, const Item& item, int64_t k,
                                        const Chunk& chunk, const Place& place,
                                        const Shared& shared, Thread& own) {
    const ScanSizes& s = a.sizes;
    const int begin = place.walker * kTile;
    if (a.grad_y_is_acc) {
      read_map<T, true>(a.grad_y, item.sample, place.channel, chunk, begin, own.grad_y);
    } else {
      read_map<io_t, true>(a.grad_y, item.sample, place.channel, chunk, begin, own.grad_y);
    }
    T sum = 0;
    MMVMAMBA_UNROLL
    for (int t = 0; t < kTile; ++t) sum += own.dt[t];
    shared.dt[place.walker * lanes(s) + place.lane] = sum;
    if (kSummary) return;
    read_map<io_t, false>(a.x, item.sample, place.channel, chunk, begin, own.x);
    const T* D = static_cast<const T*>(a.params.D);
    const T skip = D == nullptr ? T(0) : D[wide_product(k, s.channels) + place.channel];
    T grad_D = 0;  // sums of sums lose fewer digits over a long sequence
    MMVMAMBA_UNROLL
    for (int t = 0; t < kTile; ++t) {
      own.grad_x[t] = skip * own.grad_y[t];
      own.grad_dt[t] = 0;
      grad_D += own.grad_y[t] * own.x[t];
    }
    own.grad_D += grad_D;
  }

  template <class Block>
  static MMVMAMBA_BLOCK void scan_chunk(Block& block, const Args& a, const Item& item, int which,
                                        int64_t index, int64_t done, const Shared& shared) {
    const ScanSizes& s = a.sizes;
    const int64_t k = a.directions.index[which];
    const Chunk chunk = make_chunk(s, index, shared.position);
    locate(block, s, a.directions.order[which], chunk, shared.position);
    time_steps<BackwardScan>(block, a, item, k, chunk, shared,
                             [&](const Place& place, Thread& own) {
                               start_maps(a, item, k, chunk, place, shared, own);
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
      if (kSummary) {
        summarize_group(block, a, item, k, first, done, shared);
      } else {
        differentiate_group(block, a, item, k, first, done, chunk, shared);
      }
    }
    if (kSummary) return;
    block.each([&](int thread, Thread& own) {
      finish_maps(a, item, which, chunk, Place(lanes(s), item, thread), shared, own);
    });
    differentiate_ranks(block, a, item, k, done, chunk, shared);
  }

  template <class Block>
  static MMVMAMBA_BLOCK void summarize_group(Block& block, const Args& a, const Item& item,
                                             int64_t k, int64_t first, int64_t done,
                                             const Shared& shared) {
    const ScanSizes& s = a.sizes;
    block.each([&](int thread, Thread&) {
      const Place place(lanes(s), item, thread);
      if (place.walker != 0) return;
      const int64_t count = smaller(kGroup, states(s) - first);
      for (int i = 0; i < count; ++i) {
        const T rate = scale_rate<io_t>(static_cast<const T*>(
            a.params.A)[wide_product(row_of(k, states(s), first + i), s.channels) + place.channel]);
        gradient_in(a, item, k, first + i, i, done, rate, place, shared);
      }
      if (place.active && first == 0) {
        add_segment_dt<BackwardScan>(a, item, k, done, place, shared);
      }
    });
  }

  // The sums that a direction's threads hold to the end.
  template <class Block>
  static MMVMAMBA_BLOCK void finish_direction(Block& block, const Args& a, const Item& item,
                                              int64_t k, const Shared& shared) {
    const ScanSizes& s = a.sizes;
    const ParamRows rows(s, a.B.data == nullptr, a.C.data == nullptr);
    const int64_t tiles = kWalkers * lanes(s);
    block.each([&](int thread, Thread& own) {
      const Place place(lanes(s), item, thread);
      shared.sums[place.walker * lanes(s) + place.lane] = own.grad_bias;
      shared.sums[tiles + place.walker * lanes(s) + place.lane] = own.grad_D;
      if (!a.keep_weight_on_chip || !place.active) return;
      for (int64_t r = place.walker; r < s.rank; r += kWalkers) {
        param_row(a, item, k, r)[place.channel] = shared.weight[r * lanes(s) + place.lane];
      }
    });
    block.each([&](int thread, Thread&) {
      const Place place(lanes(s), item, thread);
      add_sums(a, item, k, rows.bias, true, place, shared.sums);
      add_sums(a, item, k, rows.D, true, place, shared.sums + tiles);
    });
  }

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
      block.each([&](int, Thread& own) { own.grad_bias = own.grad_D = 0; });
      for (int64_t done = 0; done < end - begin; ++done) {
        scan_chunk(block, a, item, which, reversed ? begin + done : end - 1 - done, done, shared);
      }
      if (!kSummary) finish_direction(block, a, item, a.directions.index[which], shared);
    }
  }
};

}  // namespace mmvmamba
