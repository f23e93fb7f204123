// What the blocks of the forward and the backward share: their place in the work, the positions of
// a chunk, rows of shared values, time steps.
//
// A block is `lanes` threads over neighboring channels times kWalkers threads over the positions
// of a chunk, kTile positions each. Its body is written in phases, `block.each(f)`: f runs for each
// thread, then all wait for each other. So no phase may read what another thread writes in the same
// phase, and no instruction exchanges values inside of a warp: its size is not assumed.
#pragma once

#include <type_traits>

#include "scan_args.h"
#include "scan_math.h"

#if defined(__CUDACC__) || defined(__HIPCC__)
#define MMVMAMBA_BLOCK __device__ __forceinline__
#define MMVMAMBA_UNROLL _Pragma("unroll")
#define MMVMAMBA_UNROLL_4 _Pragma("unroll 4")
#define MMVMAMBA_ROLLED _Pragma("unroll 1")
#else
#define MMVMAMBA_BLOCK inline
#define MMVMAMBA_UNROLL
#define MMVMAMBA_UNROLL_4
#define MMVMAMBA_ROLLED
#endif

namespace mmvmamba {

constexpr int kSteps = static_cast<int>(kChunk);
constexpr int kRowStride =
    kSteps + 4;  // of shared rows over a chunk: 16 bytes aligned, few conflicts
// Ranks that are in shared memory at a time.
template <typename T>
constexpr int kPanel = sizeof(T) == 8 ? 32 : 64;

MMVMAMBA_HD int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// What a block works on.
struct Item {
  int64_t sample, direction, segment, group, part, channel, width;

  // `block` counts blocks of channels fastest, then groups, segments, samples, directions; 31 bits.
  MMVMAMBA_HD Item(const ScanSizes& s, int64_t block) {
    uint32_t index = static_cast<uint32_t>(block);
    const auto take = [&](int64_t count) {
      const uint32_t n = static_cast<uint32_t>(count), rest = index % n;
      index /= n;
      return static_cast<int64_t>(rest);
    };
    part = take(s.group_blocks);
    group = take(static_cast<uint32_t>(s.channels) / static_cast<uint32_t>(s.group_channels));
    segment = take(s.segments);
    sample = take(s.batch);
    direction = index;
    channel = group * s.group_channels + part * s.lanes;
    width = smaller(s.lanes, s.group_channels - part * s.lanes);
  }
};

// A thread's place in its block. Lanes beyond the block's channels compute the first channel once
// more and write nothing.
struct Place {
  int lane, walker;
  bool active;
  int64_t channel;

  MMVMAMBA_HD Place(int lanes, const Item& item, int thread) {
    lane = thread % lanes;
    walker = thread / lanes;
    active = lane < item.width;
    channel = item.channel + (active ? lane : 0);
  }
};

// A chunk of a walk: `length` steps whose positions stand in shared memory.
struct Chunk {
  int64_t index;
  int length;
  const int32_t* position;
};

MMVMAMBA_HD Chunk make_chunk(const ScanSizes& s, int64_t index, const int32_t* position) {
  return {index, static_cast<int>(smaller(kChunk, s.length - index * kChunk)), position};
}

// The positions of a chunk's steps, in the order of the walk; steps that are none repeat the last,
// so that what they read exists.
template <class Block>
MMVMAMBA_BLOCK void locate(Block& block, const ScanSizes& s, int order, const Chunk& chunk,
                           int32_t* position) {
  block.each([&](int thread, auto&) {
    for (int l = thread; l < kSteps; l += block.threads()) {
      const int64_t first = is_reversed(order) ? s.length - chunk.index * kChunk - chunk.length
                                               : chunk.index * kChunk;
      position[l] =
          WalkOf<int32_t>(order,
                          static_cast<int32_t>(first) + (l < chunk.length ? l : chunk.length - 1),
                          static_cast<int32_t>(s.height), static_cast<int32_t>(s.width))
              .position();
    }
  });
}

// Where rows of a sample, group and direction begin; in elements.
MMVMAMBA_HD int64_t row_offset(const RowView& v, const Item& item, int64_t direction) {
  return item.sample * v.batch + item.group * v.group + direction * v.direction;
}

// The product of two numbers of 31 bits.
MMVMAMBA_HD int64_t wide_product(int64_t a, int64_t b) {
  return multiply_wide(static_cast<int32_t>(a), static_cast<int32_t>(b));
}
// a b + c of numbers of 31 bits.
MMVMAMBA_HD int32_t row_of(int64_t a, int64_t b, int64_t c) {
  return static_cast<int32_t>(a) * static_cast<int32_t>(b) + static_cast<int32_t>(c);
}

// An element of a map. Strides over positions have 32 bits, in bytes: the address is a single
// multiply-add of 32 to 64 bits, where a stride of 64 bits would take five instructions more.
template <typename T>
MMVMAMBA_HD T& element(T* data, int32_t position, int32_t stride) {
  const int64_t offset = multiply_wide(position, stride);
  using Byte = std::conditional_t<std::is_const_v<T>, const char, char>;
  return *reinterpret_cast<T*>(reinterpret_cast<Byte*>(data) + offset);
}

// Calls f(l, first, step): for a step l of a chunk, the items that a thread of the block has. Where
// items adjoin, eight threads share a step: these read 16 bytes or more at a time, and the rows'
// stride spreads eight items of four steps over all banks of shared memory. kOne: one item.
template <bool kOne, class F>
MMVMAMBA_BLOCK void each_step(bool adjoin, int thread, int threads, F f) {
  if (kOne || !adjoin) {
    for (int l = thread % kSteps; l < kSteps; l += kSteps) {
      f(l, thread / kSteps, threads / kSteps);
    }
  } else {
    for (int l = thread / 8; l < kSteps; l += threads / 8) f(l, thread % 8, 8);
  }
}

// Copies items [first, first + count) of a chunk's rows to `rows` [count][kRowStride], zero where
// there is no position. Part of a phase. kRanks: items adjoin.
template <typename io_t, bool kOne, bool kRanks = false, typename T>
MMVMAMBA_BLOCK void stage(const RowView& v, int64_t offset, int64_t first, int64_t count,
                          const Chunk& chunk, int thread, int threads, T* rows) {
  io_t* from = static_cast<io_t*>(v.data) + offset + first * v.item;
  const int32_t stride = static_cast<int32_t>(v.position * sizeof(io_t));
  const int n = kOne ? 1 : static_cast<int>(count);
  each_step<kOne>(kRanks || v.item == 1, thread, threads, [&](int l, int begin, int step) {
    const bool valid = l < chunk.length;
    const io_t* items = &element<io_t>(from, valid ? chunk.position[l] : 0, stride);
    MMVMAMBA_ROLLED
    for (int i = begin; i < n; i += step) {
      const io_t value = valid ? items[kRanks ? i : i * v.item] : io_t(0);
      rows[i * kRowStride + l] = static_cast<T>(value);
    }
  });
}

// The reverse: writes `rows` to a map of acc values.
template <bool kOne, bool kRanks = false, typename T>
MMVMAMBA_BLOCK void unstage(const RowView& v, int64_t offset, int64_t first, int64_t count,
                            const Chunk& chunk, int thread, int threads, const T* rows) {
  T* to = static_cast<T*>(v.data) + offset + first * v.item;
  const int32_t stride = static_cast<int32_t>(v.position * sizeof(T));
  const int n = kOne ? 1 : static_cast<int>(count);
  each_step<kOne>(kRanks || v.item == 1, thread, threads, [&](int l, int begin, int step) {
    if (l >= chunk.length) return;
    T* items = &element<T>(to, chunk.position[l], stride);
    MMVMAMBA_ROLLED
    for (int i = begin; i < n; i += step) items[kRanks ? i : i * v.item] = rows[i * kRowStride + l];
  });
}

// A thread's tile of a shared row, in pieces of 16 bytes.
template <int kTile, typename T>
MMVMAMBA_BLOCK void load_tile(const T* row, T (&tile)[kTile]) {
  constexpr int piece = 16 / sizeof(T);
  MMVMAMBA_UNROLL
  for (int t = 0; t < kTile; t += piece) {
    __builtin_memcpy(tile + t, __builtin_assume_aligned(row + t, 16), 16);
  }
}
template <int kTile, typename T>
MMVMAMBA_BLOCK void fill_tile(T value, T (&tile)[kTile]) {
  MMVMAMBA_UNROLL
  for (int t = 0; t < kTile; ++t) tile[t] = value;
}

// Elements of a map at a tile's positions. Where there is none, zero or, not padded, the last.
template <typename io_t, bool kPad, int kTile, typename T>
MMVMAMBA_BLOCK void read_map(const MapView& v, int64_t sample, int64_t channel, const Chunk& chunk,
                             int first, T (&tile)[kTile]) {
  io_t* from = static_cast<io_t*>(v.data) + sample * v.batch + channel * v.channel;
  const int32_t stride = static_cast<int32_t>(v.position * sizeof(io_t));
  int32_t position[kTile];
  load_tile(chunk.position + first, position);
  io_t value[kTile];
  MMVMAMBA_UNROLL
  for (int t = 0; t < kTile; ++t) value[t] = element<io_t>(from, position[t], stride);
  MMVMAMBA_UNROLL
  for (int t = 0; t < kTile; ++t) {
    tile[t] = !kPad || first + t < chunk.length ? static_cast<T>(value[t]) : T(0);
  }
}

// Sets or adds to the sum over directions; the last direction may write a narrower type instead.
template <typename io_t, int kTile, typename T>
MMVMAMBA_BLOCK void write_map(const MapView& sum, const MapView& narrow, bool first_direction,
                              bool last_direction, int64_t sample, int64_t channel,
                              const Chunk& chunk, int first, const T (&tile)[kTile]) {
  T* total = static_cast<T*>(sum.data) + sample * sum.batch + channel * sum.channel;
  const int32_t stride = static_cast<int32_t>(sum.position * sizeof(T));
  int32_t position[kTile];
  load_tile(chunk.position + first, position);
  // Loads before stores, which might alias: a load that waits for its neighbor's store would leave
  // one in flight at a time.
  T value[kTile];
  fill_tile(T(0), value);
  if (!first_direction) {
    MMVMAMBA_UNROLL
    for (int t = 0; t < kTile; ++t) {  // beyond the end another thread may be writing
      if (first + t < chunk.length) value[t] = element<T>(total, position[t], stride);
    }
  }
  MMVMAMBA_UNROLL
  for (int t = 0; t < kTile; ++t) value[t] += tile[t];
  if (last_direction && narrow.data != nullptr) {
    io_t* out = static_cast<io_t*>(narrow.data) + sample * narrow.batch + channel * narrow.channel;
    const int32_t narrow_stride = static_cast<int32_t>(narrow.position * sizeof(io_t));
    MMVMAMBA_UNROLL
    for (int t = 0; t < kTile; ++t) {
      if (first + t < chunk.length) {
        element<io_t>(out, position[t], narrow_stride) = static_cast<io_t>(value[t]);
      }
    }
  } else {
    MMVMAMBA_UNROLL
    for (int t = 0; t < kTile; ++t) {
      if (first + t < chunk.length) element<T>(total, position[t], stride) = value[t];
    }
  }
}

// Adds a panel of ranks to a tile's time steps before softplus. `low` are its rows.
template <int kTile, typename T>
MMVMAMBA_BLOCK void add_ranks(const ScanSizes& s, const T* weight, int64_t direction,
                              int64_t channel, int64_t first_rank, int64_t count, const T* low,
                              int first, T (&dt)[kTile]) {
  weight += wide_product(row_of(direction, s.rank, first_rank), s.channels) + channel;
  const int32_t stride = static_cast<int32_t>(s.channels * sizeof(T)), n = static_cast<int>(count);
  low += first;
  MMVMAMBA_UNROLL_4
  for (int r = 0; r < n; ++r) {
    const T w = element<const T>(weight, r, stride);
    T tile[kTile];
    load_tile(low + r * kRowStride, tile);
    MMVMAMBA_UNROLL
    for (int t = 0; t < kTile; ++t) dt[t] += w * tile[t];
  }
}

// Where the states of a walk's segment or chunk lie: [batch][directions][count][states][channels].
MMVMAMBA_HD int64_t state_offset(const ScanSizes& s, int64_t sample, int64_t direction,
                                 int64_t count, int64_t index) {
  return wide_product(row_of(row_of(sample, s.directions, direction), count, index),
                      row_of(s.states, s.channels, 0));
}
// Elements of one of the two halves of a carry buffer.
MMVMAMBA_HD int64_t carry_half(const ScanSizes& s) {
  return wide_product(row_of(row_of(s.batch, s.directions, 0), s.segments, 0),
                      row_of(s.states, s.channels, 0));
}

// The time steps of a chunk for the block's threads, in `thread.dt`, with their slopes where the
// thread has room for them; padded steps are zero. Leaves the last panel of ranks in `low` and the
// first group of B and C in `rows`. Ends inside of a phase: `then` is its rest.
template <class Scan, class Args, class Block, class Shared, class Then>
MMVMAMBA_BLOCK void time_steps(Block& block, const Args& a, const Item& item, int64_t k,
                               const Chunk& chunk, const Shared& shared, Then then) {
  using T = typename Scan::T;
  using io_t = typename Scan::io;
  const ScanSizes& s = a.sizes;
  const int64_t panels = s.rank == 0 ? 1 : ceil_div(s.rank, kPanel<T>);
  for (int64_t panel = 0; panel < panels; ++panel) {
    const int64_t first = panel * kPanel<T>, count = smaller(kPanel<T>, s.rank - first);
    block.each([&](int thread, auto&) {
      if (s.rank > 0) {
        stage<io_t, false, true>(a.low, row_offset(a.low, item, k), first, count, chunk, thread,
                                 block.threads(), shared.low);
      }
      if (panel == 0) {
        Scan::stage_weights(a, item, k, 0, chunk, thread, block.threads(), shared);
      }
    });
    block.each([&](int thread, auto& own) {
      const Place place(Scan::lanes(s), item, thread);
      const int begin = place.walker * Scan::kTile;
      if (panel == 0) fill_tile(T(0), own.dt);
      if (s.rank > 0) {
        add_ranks(s, static_cast<const T*>(a.params.dt_weight), k, place.channel, first, count,
                  shared.low, begin, own.dt);
      } else {
        T delta[Scan::kTile];
        read_map<io_t, false>(a.delta, item.sample, place.channel, chunk, begin, delta);
        MMVMAMBA_UNROLL
        for (int t = 0; t < Scan::kTile; ++t) own.dt[t] += delta[t];
      }
      if (panel + 1 < panels) return;
      // The bias comes last: a sum of small terms loses fewer digits.
      const T* biases = static_cast<const T*>(a.params.dt_bias);
      const T bias = biases == nullptr ? T(0) : biases[wide_product(k, s.channels) + place.channel];
      MMVMAMBA_UNROLL
      for (int t = 0; t < Scan::kTile; ++t) {
        T slope = T(1);
        const T sum = own.dt[t] + bias;
        const T step = s.softplus ? softplus<io_t>(sum, &slope) : sum;
        const bool valid = begin + t < chunk.length;
        own.dt[t] = valid ? step : T(0);
        Scan::keep_slope(own, t, valid ? slope : T(0));
      }
      then(place, own);
    });
  }
}

// B or C of a state at a tile's positions.
template <int kTile, typename T>
MMVMAMBA_BLOCK void weight_tile(const void* constant, const ScanSizes& s, int64_t state,
                                int64_t channel, const T* row, int first, T (&tile)[kTile]) {
  if (constant != nullptr) {
    fill_tile(static_cast<const T*>(constant)[state * s.channels + channel], tile);
  } else {
    load_tile(row + first, tile);
  }
}

// A summary adds a chunk's time steps, in shared memory by tile, to those of its segment.
template <class Scan, class Args, class Shared>
MMVMAMBA_BLOCK void add_segment_dt(const Args& a, const Item& item, int64_t k, int64_t done,
                                   const Place& place, const Shared& shared) {
  using T = typename Scan::T;
  const ScanSizes& s = a.sizes;
  const int32_t row = row_of(row_of(item.sample, s.directions, k), s.segments, item.segment);
  T& total = static_cast<T*>(a.segment_dt)[wide_product(row, s.channels) + place.channel];
  T sum = done == 0 ? T(0) : total;
  for (int j = 0; j < Scan::kWalkers; ++j) sum += shared.dt[j * Scan::lanes(s) + place.lane];
  total = sum;
}

// The state before each segment, from the segments' ends; one thread for each index, which counts
// channels fastest, then states, samples, directions.
template <typename T>
MMVMAMBA_BLOCK void combine_segments(const ScanCarry& a, int64_t index) {
  const ScanSizes& s = a.sizes;
  const int64_t channel = index % s.channels, state = index / s.channels % s.states;
  const int64_t sample = index / (s.channels * s.states) % s.batch;
  const int64_t which = index / (s.channels * s.states * s.batch);
  const int64_t k = a.directions.index[which];
  const T rate = static_cast<const T*>(a.A)[(k * s.states + state) * s.channels + channel];
  T* carry = static_cast<T*>(a.carry) + state_offset(s, sample, k, s.segments, 0) +
             state * s.channels + channel;
  const T* dt = static_cast<const T*>(a.segment_dt) +
                (sample * s.directions + k) * s.segments * s.channels + channel;
  const bool descending = !is_reversed(a.directions.order[which]);  // against the walk
  T h = 0;
  for (int64_t j = 0; j < s.segments; ++j) {
    const int64_t segment = descending ? s.segments - 1 - j : j;
    T& end = carry[segment * s.states * s.channels];
    const T next = exp_of(rate * dt[segment * s.channels]) * h + end;
    end = h;
    h = next;
  }
}

}  // namespace mmvmamba
