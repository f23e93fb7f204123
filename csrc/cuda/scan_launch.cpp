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
int64_t with_type(DeviceIo io, F f) {
  switch (io) {
    case DeviceIo::kDouble:
      return f(0.0);
    case DeviceIo::kFloat:
      return f(0.0f);
    default:
      return f(torch::headeronly::Half());
  }
}

// Directions of one axis may share a launch, as their blocks hold the same positions of it; all may
// where a block has the whole axis.
std::vector<ScanDirections> batches(bool by_axis, const std::vector<int64_t>& orders) {
  std::vector<ScanDirections> out;
  const auto add = [&](int64_t k) {
    const bool full = out.empty() || out.back().count == kMaxDirections;
    const bool other_axis =
        !full && by_axis && along_columns(out.back().order[0]) != along_columns(orders[k]);
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

// The sizes of a problem, before it is split. Raises RuntimeError if one does not fit in 32 bits.
ScanPlan describe(const ScanSizes& s) {
  constexpr int64_t limit_of_int = std::numeric_limits<int32_t>::max();
  STD_TORCH_CHECK(s.length < limit_of_int - kTeamLanes * kTilePositions,
                  "a sequence must have less than 2^31 - 129 positions, but got ", s.length);
  // Rows of ranks lie in shared memory, channels are counted in bytes.
  STD_TORCH_CHECK(s.batch * s.channels < limit_of_int && s.batch * s.directions < limit_of_int &&
                      s.channels < limit_of_int / 8 && s.rank < limit_of_int / 512 &&
                      s.channels * s.states * s.directions < limit_of_int / 2 &&
                      s.channels * s.rank * s.directions < limit_of_int &&
                      ceil_div(s.length, kTilePositions) * s.states < limit_of_int,
                  "the scan has too many samples, channels, states or ranks: ", s.batch, ", ",
                  s.channels, ", ", s.states, " and ", s.rank);
  const int64_t tiles = ceil_div(s.length, kTilePositions);
  const int64_t channel_tiles = ceil_div(s.group_channels, kTileChannels);
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
  p.packed_bytes = p.octets * kPackedWords * 4;
  p.walk_states = tiles * s.states * s.channels;
  for (int64_t i = 0; i < 8; ++i) {
    if (8 * (p.octets - 1) + i < s.rank) p.tail[i / 2] |= 0xffffu << (i % 2 * 16);
  }
  p.state_sums = 1 + s.constant_B + s.constant_C;
  p.softplus = s.softplus;
  return p;
}

// Sets what follows from the sizes of a split.
void set_parts(ScanPlan& p, int64_t segment_tiles, int64_t channel_tiles) {
  p.segments = static_cast<int32_t>(ceil_div(p.axis_tiles, segment_tiles));
  p.group_parts = static_cast<int32_t>(ceil_div(p.group_tiles, channel_tiles));
  p.tiles = static_cast<int32_t>(ceil_div(p.group_tiles, p.group_parts));
  p.by_parts = Divisor(p.group_parts);
  p.by_groups = Divisor(p.groups);
  p.by_segments = Divisor(p.segments);
  p.by_batch = Divisor(p.batch);
}

[[noreturn]] void refuse(const ScanPlan& p, int64_t size, int64_t limit) {
  STD_TORCH_CHECK(false, "the scan needs ", size, " bytes of shared memory for ", p.states,
                  " states and rank ", p.rank, ", the device has ", limit);
}

// Plans a call in which each lane scans a tile, with as many warps in a block as fit. A summary
// keeps no sums, so a warp may have more than four tiles of positions.
ScanPlan plan_lanes(ScanPlan p, DeviceIo io, const ScanDevice& device, bool summary) {
  const int64_t limit = device.max_shared();
  int64_t size = 0, visits = 1;
  p.split = true;
  p.keep_rows = false;
  if (summary) {
    const int64_t warps = int64_t{p.batch} * p.groups * p.group_tiles * p.directions *
                          ceil_div(p.axis_tiles, kTeamLanes);
    visits = std::clamp<int64_t>(warps * 32 / device.target_threads(), 1, 8);
  }
  p.segment_tiles = static_cast<int32_t>(visits * kTeamLanes);
  for (int64_t warps = std::min<int64_t>(p.group_tiles, kMostLaneWarps); warps > 0; --warps) {
    set_parts(p, p.segment_tiles, warps);
    p.warps = p.tiles;
    for (const int32_t slots : {kTeamLanes, 1}) {
      p.slots = slots;
      size = with_type(io, [&](auto zero) { return lay_out_lanes<decltype(zero)>(p, summary); });
      if (size <= limit) return p;
    }
  }
  refuse(p, size, limit);
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

ScanPlan plan_scan(const ScanSizes& s, DeviceIo io, const ScanDevice& device, bool is_map,
                   bool backward) {
  ScanPlan p = describe(s);
  const int64_t tiles = p.axis_tiles, channel_tiles = p.group_tiles;
  const int64_t walks = s.batch * p.groups * channel_tiles;
  const int64_t limit = device.max_shared();
  // Warps share the tiles of a segment evenly.
  const auto lay_out_split = [&](int64_t segment_tiles, int64_t most,
                                 int64_t channel_tiles_of_block) {
    set_parts(p, segment_tiles, channel_tiles_of_block);
    p.segment_tiles = static_cast<int32_t>(ceil_div(tiles, p.segments));
    const int64_t rounds = ceil_div(p.segment_tiles, most);
    p.warps = static_cast<int32_t>(ceil_div(p.segment_tiles, rounds));
    return with_type(io, [&](auto zero) { return lay_out<decltype(zero)>(p, backward); });
  };
  // A block has half of the warps of a multiprocessor; all if only one block fits, or fewer if the
  // whole axis then fits.
  const int64_t most = with_type(
      io, [&](auto zero) { return most_warps<decltype(zero)>(backward, is_map && s.states == 1); });
  const int64_t half = most / 2;
  int64_t warps = most;
  while (warps > 1 && lay_out_split(tiles, warps, 1) > limit) --warps;
  // Blocks of a multiprocessor, each with 1 KB of the system's.
  const auto fits = [&](int64_t size, int64_t blocks) {
    return blocks * (size + 1024) <= limit + 1024;
  };
  if (fits(lay_out_split(tiles, std::min(warps, half), 1), 2)) warps = std::min(warps, half);
  // A split costs a summary, so a walk is split only if the sum of an axis does not fit, or fits
  // only a block of few warps, or if the blocks would fill less than half of the GPU.
  const int64_t threads = walks * std::min(tiles, half) * 32, target = device.target_threads();
  const bool few = 2 * threads < target && tiles > device.least_split();
  p.split = few || warps < half / 2 || lay_out_split(tiles, warps, 1) > limit;
  if (p.split && !backward) return plan_lanes(p, io, device, false);
  int64_t segment_tiles = tiles;
  if (p.split) {
    // Segments of two rounds leave room for tiles of channels.
    segment_tiles = std::min(few ? ceil_div(tiles, ceil_div(target, threads)) : tiles, 2 * half);
    while (lay_out_split(segment_tiles, segment_tiles, 1) > limit && segment_tiles > 1)
      --segment_tiles;
    warps = ceil_div(segment_tiles, 2);
  }
  const int64_t size = lay_out_split(segment_tiles, warps, 1);
  if (size > limit) refuse(p, size, limit);
  // Tiles of channels that share the rows of proj, while the device has enough to do and its
  // multiprocessors hold enough blocks.
  const int64_t segments = p.segments;
  const int64_t most_tiles = s.states > kStateGroup ? 1 : std::min<int64_t>(channel_tiles, 8);
  for (int64_t n = most_tiles; n > 1; --n) {
    const int64_t blocks = walks / channel_tiles * ceil_div(channel_tiles, n) * segments;
    if (2 * blocks * p.warps * 32 < target) continue;
    const ScanPlan before = p;
    if (fits(lay_out_split(segment_tiles, warps, n), std::max<int64_t>(2, most / 2 / p.warps)))
      break;
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
  const bool split = args.plan.split;
  if (split) {
    Args summary = args;
    summary.plan = plan_lanes(args.plan, args.io, device, true);
    for (const ScanDirections& directions : batches(false, orders)) {
      summary.directions = directions;
      summary.pack_weights = args.pack_weights;
      device.run(summary, ScanPass::kSummary);
      args.pack_weights = false;
      device.combine(summary);
    }
  }
  const ScanPass pass = split && !args.backward ? ScanPass::kLanes : ScanPass::kBlocks;
  for (const ScanDirections& directions : batches(split, orders)) {
    args.directions = directions;
    device.run(args, pass);
    args.pack_weights = false;
  }
}

}  // namespace

void launch_scan(const ScanDevice& device, ScanForward args, const std::vector<int64_t>& orders) {
  launch_all(device, args, orders);
}
void launch_scan(const ScanDevice& device, ScanBackward args, const std::vector<int64_t>& orders) {
  check_strides({args.grad_y, args.grad_delta});
  args.backward = true;
  launch_all(device, args, orders);
}
int64_t first_direction(const std::vector<int64_t>& orders) {
  return batches(false, orders).front().index[0];
}

ScanScratch::ScanScratch(const Tensor& like, ScanCall& args, const Tensor& saved)
    : tiles(empty_on(
          like,
          {args.plan.split ? (saved.numel() > 0 ? 1 : 2) : 0, args.plan.batch, args.plan.directions,
           args.plan.axis_tiles, args.plan.states, args.plan.channels},
          acc_type(like.scalar_type()))),
      weight(empty_on(
          like, {like.element_size() == 2 ? packed_weight_pieces(args.plan) * kPackedWords : 0},
          ScalarType::Int)) {
  args.decay = tiles.data_ptr();
  args.state = saved.numel() > 0
                   ? saved.data_ptr()
                   : static_cast<char*>(args.decay) + tiles.numel() / 2 * tiles.element_size();
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
