// How a call is split into blocks and launches.
#include "scan_launch.h"

#include <algorithm>
#include <initializer_list>
#include <limits>

#include "scan_shared.h"

namespace mmvmamba {
namespace {

// Calls f with a value of an I/O type.
template <class F>
int64_t with_type(ScalarType io, F f) {
  switch (io) {
    case ScalarType::Double:
      return f(0.0);
    case ScalarType::Float:
      return f(0.0f);
    default:
      return f(torch::headeronly::Half());
  }
}

// Directions of one axis may share a launch, as their segments hold the same positions; with a
// single segment, all may.
std::vector<ScanDirections> batches(int64_t segments, const std::vector<int64_t>& orders) {
  std::vector<ScanDirections> out;
  const auto add = [&](int64_t k) {
    const bool full = out.empty() || out.back().count == kMaxDirections;
    const bool other_axis =
        !full && segments > 1 && along_columns(out.back().order[0]) != along_columns(orders[k]);
    if (full || other_axis) out.emplace_back();
    ScanDirections& last = out.back();
    last.index[last.count] = static_cast<int32_t>(k);
    last.order[last.count++] = static_cast<int32_t>(orders[k]);
  };
  const int64_t K = orders.size();
  for (int64_t k = 0; k < K; ++k) {
    if (!along_columns(orders[k])) add(k);
  }
  for (int64_t k = 0; k < K; ++k) {
    if (along_columns(orders[k])) add(k);
  }
  out.front().begin = true;
  out.back().end = true;
  return out;
}

// Segments cost a summary pass, so only where the threads would fill less than half of the GPU.
int64_t wanted_segments(const ScanDevice& device, int64_t threads, int64_t most) {
  const int64_t target = device.target_threads();
  return 2 * threads >= target ? 1 : std::min(ceil_div(target, threads), most);
}

// The kernels count bytes from one position to the next in 32 bits.
template <typename View>
void check_strides(std::initializer_list<View> views) {
  for (const View& view : views) {
    STD_TORCH_CHECK(view.data == nullptr || view.position < (int64_t{1} << 28),
                    "neighboring positions must be less than 2^28 elements apart, but got ",
                    view.position);
  }
}

}  // namespace

DeviceIo device_io(ScalarType type) {
  switch (type) {
    case ScalarType::Float:
      return DeviceIo::kFloat;
    case ScalarType::Half:
      return DeviceIo::kHalf;
    case ScalarType::BFloat16:
      return DeviceIo::kBFloat16;
    case ScalarType::Double:
      return DeviceIo::kDouble;
    default:
      STD_TORCH_CHECK(false, "the CUDA kernels take float32, float16, bfloat16 or float64, not ",
                      torch::headeronly::toString(type));
  }
}

int64_t state_count(const ScanSizes& s) {
  return s.batch * s.directions * ceil_div(s.length, kTilePositions) * s.states * s.channels;
}

ScanPlan plan_scan(const ScanSizes& s, ScalarType io, const ScanDevice& device, bool is_map,
                   bool backward) {
  constexpr int64_t limit_of_int = std::numeric_limits<int32_t>::max();
  STD_TORCH_CHECK(s.length < limit_of_int - kTilePositions,
                  "a sequence must have less than 2^31 - 33 positions, but got ", s.length);
  STD_TORCH_CHECK(s.batch * s.channels < limit_of_int &&
                      s.channels * s.states * s.directions < limit_of_int &&
                      s.channels * s.rank * s.directions < limit_of_int &&
                      ceil_div(s.length, kTilePositions) * s.states < limit_of_int,
                  "the scan has too many samples, channels or states: ", s.batch, ", ", s.channels,
                  " and ", s.states);
  const int64_t tiles = ceil_div(s.length, kTilePositions);
  const int64_t channel_tiles = ceil_div(s.group_channels, kTileChannels);
  const int64_t walks = s.batch * s.channels / s.group_channels * channel_tiles;
  const int64_t limit = device.max_shared();
  ScanPlan p = {};
  p.length = static_cast<int32_t>(s.length);
  p.batch = static_cast<int32_t>(s.batch);
  p.height = static_cast<int32_t>(s.height);
  p.width = static_cast<int32_t>(s.width);
  p.by_height = Divisor(s.height);
  p.by_eight_rows = Divisor(std::min<int64_t>(8 * s.width, limit_of_int));
  p.channels = static_cast<int32_t>(s.channels);
  p.group_channels = static_cast<int32_t>(s.group_channels);
  p.states = static_cast<int32_t>(s.states);
  p.rank = static_cast<int32_t>(s.rank);
  p.directions = static_cast<int32_t>(s.directions);
  p.axis_tiles = static_cast<int32_t>(tiles);
  p.groups = static_cast<int32_t>(s.channels / s.group_channels);
  p.group_tiles = static_cast<int32_t>(channel_tiles);
  p.octets = static_cast<int32_t>(ceil_div(s.rank, 8));
  for (int64_t i = 0; i < 8; ++i) {
    if (8 * (p.octets - 1) + i < s.rank) p.tail[i / 2] |= 0xffffu << (i % 2 * 16);
  }
  p.state_sums = 1 + s.constant_B + s.constant_C;
  p.softplus = s.softplus;
  const auto lay_out_plan = [&] {
    return with_type(io, [&](auto zero) { return lay_out<decltype(zero)>(p, backward); });
  };
  // Warps share the tiles of a segment evenly.
  const auto split = [&](int64_t segment_tiles, int64_t most, int64_t channel_tiles_of_block) {
    p.segments = static_cast<int32_t>(ceil_div(tiles, segment_tiles));
    p.segment_tiles = static_cast<int32_t>(ceil_div(tiles, p.segments));
    const int64_t rounds = ceil_div(p.segment_tiles, most);
    p.warps = static_cast<int32_t>(ceil_div(p.segment_tiles, rounds));
    p.group_parts = static_cast<int32_t>(ceil_div(channel_tiles, channel_tiles_of_block));
    p.tiles = static_cast<int32_t>(ceil_div(channel_tiles, p.group_parts));
    return lay_out_plan();
  };
  // A block has half of the warps of a multiprocessor; all if only one block fits, or fewer if the
  // whole axis then fits.
  const int64_t most = with_type(
      io, [&](auto zero) { return most_warps<decltype(zero)>(backward, is_map && s.states == 1); });
  const int64_t half = most / 2;
  const int64_t threads = walks * std::min(tiles, half) * 32;
  int64_t segment_tiles = ceil_div(tiles, wanted_segments(device, threads, tiles));
  int64_t warps = most;
  while (warps > 1 && split(segment_tiles, warps, 1) > limit) --warps;
  // Blocks of a multiprocessor, each with 1 KB of the system's.
  const auto fits = [&](int64_t size, int64_t blocks) {
    return blocks * (size + 1024) <= limit + 1024;
  };
  if (fits(split(segment_tiles, std::min(warps, half), 1), 2)) warps = std::min(warps, half);
  // Segments cost a summary, whatever their length: short ones leave room for tiles of channels.
  if (segment_tiles < tiles || split(segment_tiles, warps, 1) > limit || warps < half / 2) {
    segment_tiles = warps = std::min(segment_tiles, half);
  }
  while (split(segment_tiles, warps, 1) > limit) {
    STD_TORCH_CHECK(segment_tiles > 1, "the scan needs ", lay_out_plan(),
                    " bytes of shared memory for ", s.states, " states and rank ", s.rank,
                    ", the device has ", limit);
    warps = --segment_tiles;
  }
  // Tiles of channels that share the rows of proj, while the device has enough to do and its
  // multiprocessors hold enough blocks.
  const int64_t segments = p.segments;
  const int64_t most_tiles = s.states > kStateGroup ? 1 : std::min<int64_t>(channel_tiles, 8);
  for (int64_t n = most_tiles; n > 1; --n) {
    const int64_t blocks = walks / channel_tiles * ceil_div(channel_tiles, n) * segments;
    if (2 * blocks * p.warps * 32 < device.target_threads()) continue;
    const ScanPlan before = p;
    const int64_t size = split(segment_tiles, warps, n);
    if (fits(size, std::max<int64_t>(2, most / 2 / p.warps))) break;
    p = before;
  }
  return p;
}

namespace {

template <class Args>
void launch_all(const ScanDevice& device, Args args, const std::vector<int64_t>& orders) {
  check_strides({args.x, args.delta, args.sum, args.out});
  check_strides({args.low, args.B, args.C});
  args.pack_weights = true;
  if (args.plan.segments > 1) {
    for (const ScanDirections& directions : batches(1, orders)) {
      args.directions = directions;
      device.run(args, true);
      args.pack_weights = false;
      device.combine(args);
    }
  }
  for (const ScanDirections& directions : batches(args.plan.segments, orders)) {
    args.directions = directions;
    device.run(args, false);
    args.pack_weights = false;
  }
}

}  // namespace

void launch_scan(const ScanDevice& device, ScanForward args, const std::vector<int64_t>& orders) {
  args.backward = false;
  launch_all(device, args, orders);
}
void launch_scan(const ScanDevice& device, ScanBackward args, const std::vector<int64_t>& orders) {
  check_strides({args.grad_y, args.grad_delta});
  args.backward = true;
  launch_all(device, args, orders);
}
int64_t first_direction(const std::vector<int64_t>& orders) {
  return batches(1, orders).front().index[0];
}

ScanScratch::ScanScratch(const Tensor& like, ScanCall& args)
    : segments(empty_on(
          like,
          {2, args.plan.batch, args.plan.directions,
           args.plan.segments > 1 ? args.plan.segments : 0, args.plan.states, args.plan.channels},
          acc_type(like.scalar_type()))),
      weight(empty_on(
          like, {like.element_size() == 2 ? packed_weight_pieces(args.plan) * kPackedWords : 0},
          ScalarType::Int)) {
  args.decay = segments.data_ptr();
  args.state = static_cast<char*>(args.decay) + segments.numel() / 2 * segments.element_size();
  args.packed_weight = weight.data_ptr();
}

int32_t narrow(int64_t stride) {
  STD_TORCH_CHECK(stride <= std::numeric_limits<int32_t>::max(),
                  "a stride must be less than 2^31 elements, but got ", stride);
  return static_cast<int32_t>(stride);
}

MapView map_nhwc(const Tensor& v) {
  return {v.data_ptr(), v.size(1) * v.size(2) * v.size(3), 1, narrow(v.size(3))};
}
MapView map_ncl(const Tensor& v) {
  return {v.data_ptr(), v.stride(0), v.stride(1), narrow(v.stride(2))};
}

bool is_aligned(const Tensor& v, int64_t bytes) {
  return reinterpret_cast<uintptr_t>(v.data_ptr()) % bytes == 0;
}

Tensor allocate_partial_sums(const Tensor& like, int64_t count, Shape sizes, ScalarType acc) {
  if (count == 1) return empty_on(like, sizes, acc);
  return empty_on(like, prepend(count, sizes), acc);
}

Tensor reduce_partial_sums(const Tensor& parts, int64_t count, ScalarType type) {
  const Sizes first = {0};
  return as_type(count == 1 ? parts : torch::stable::sum(parts, first), type);
}

}  // namespace mmvmamba
