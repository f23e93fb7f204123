// How a call is split into blocks and launches.
#include "scan_launch.h"

#include <algorithm>
#include <initializer_list>
#include <limits>

#include "scan_backward.h"
#include "scan_shared.h"

namespace mmvmamba {
namespace {

// The least shared memory of the backward; sums of grad dt_weight that do not fit go to memory.
template <typename T>
int64_t least_shared(const ScanSizes& s) {
  return s.states == 1 ? BackwardScan<T, 1, false>::Shared::size(s, false)
                       : BackwardScan<T, kBackwardGroup, false>::Shared::size(s, false);
}

int64_t least_shared(const ScanSizes& s, ScalarType io) {
  return io == ScalarType::Double ? least_shared<double>(s) : least_shared<float>(s);
}

int64_t forward_shared(const ScanPlan& plan, ScalarType io) {
  switch (io) {
    case ScalarType::Double:
      return Shared<double>(plan, nullptr).size;
    case ScalarType::Float:
      return Shared<float>(plan, nullptr).size;
    default:
      return Shared<torch::headeronly::Half>(plan, nullptr).size;
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

void split_backward(ScanSizes& s, ScalarType io, const ScanDevice& device) {
  STD_TORCH_CHECK(s.length < std::numeric_limits<int32_t>::max(),
                  "a sequence must have less than 2^31 positions, but got ", s.length);
  // The widest block without idle lanes, else the one with the fewest.
  s.lanes = 0;
  for (int64_t lanes = kMaxLanes; lanes > 0; lanes -= kLaneStep) {
    const ScanSizes before = s;
    s.lanes = lanes;
    s.group_blocks = ceil_div(s.group_channels, lanes);
    const bool fits = least_shared(s, io) <= device.max_shared();
    const bool better =
        before.lanes == 0 || s.lanes * s.group_blocks < before.lanes * before.group_blocks;
    if (!fits || !better) s = before;
  }
  if (s.lanes == 0) {
    s.lanes = kLaneStep;
    STD_TORCH_CHECK(false, "the scan needs ", least_shared(s, io), " bytes of shared memory for ",
                    s.states, " states and rank ", s.rank, ", the device has ",
                    device.max_shared());
  }
  s.chunks = ceil_div(s.length, kChunk);
  const int64_t threads = s.batch * (s.channels / s.group_channels) * s.group_blocks * s.lanes *
                          BackwardScan<float, 1, false>::kWalkers;
  s.segment_chunks = ceil_div(s.chunks, wanted_segments(device, threads, s.chunks));
  s.segments = ceil_div(s.chunks, s.segment_chunks);
  // Rows of states and of the parameters' gradients, and what a row holds.
  const int64_t rows =
      s.batch * s.directions * std::max(s.chunks, s.segments * (s.rank + 3 * s.states + 2));
  STD_TORCH_CHECK(std::max(rows, s.states * s.channels) < std::numeric_limits<int32_t>::max(),
                  "the scan has too many states: ", rows, " rows of ", s.states * s.channels);
}

ScanPlan plan_forward(const ScanSizes& s, ScalarType io, const ScanDevice& device) {
  constexpr int64_t most = std::numeric_limits<int32_t>::max();
  STD_TORCH_CHECK(s.length < most - kTilePositions,
                  "a sequence must have less than 2^31 - 33 positions, but got ", s.length);
  STD_TORCH_CHECK(s.batch * s.channels < most && s.channels * s.states * s.directions < most &&
                      s.channels * s.rank * s.directions < most,
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
  p.by_eight_rows = Divisor(std::min<int64_t>(8 * s.width, most));
  p.channels = static_cast<int32_t>(s.channels);
  p.group_channels = static_cast<int32_t>(s.group_channels);
  p.states = static_cast<int32_t>(s.states);
  p.rank = static_cast<int32_t>(s.rank);
  p.directions = static_cast<int32_t>(s.directions);
  p.chunks = static_cast<int32_t>(s.chunks);
  p.softplus = s.softplus;
  // Warps share the tiles of a segment evenly.
  const auto split = [&](int64_t segment_tiles, int64_t most_warps,
                         int64_t channel_tiles_of_block) {
    p.segments = static_cast<int32_t>(ceil_div(tiles, segment_tiles));
    p.segment_tiles = static_cast<int32_t>(ceil_div(tiles, p.segments));
    const int64_t rounds = ceil_div(p.segment_tiles, most_warps);
    p.warps = static_cast<int32_t>(ceil_div(p.segment_tiles, rounds));
    p.group_parts = static_cast<int32_t>(ceil_div(channel_tiles, channel_tiles_of_block));
    p.tiles = static_cast<int32_t>(ceil_div(channel_tiles, p.group_parts));
    return forward_shared(p, io);
  };
  // The longest segments that fit and that are enough for the device. A block has half of the warps
  // of a multiprocessor, or all if only one block fits, fewer if that makes a longer segment fit.
  const int64_t half = kMaxWarps / 2;
  const int64_t threads = walks * std::min(tiles, half) * 32;
  int64_t segment_tiles = ceil_div(tiles, wanted_segments(device, threads, tiles));
  int64_t warps = kMaxWarps;
  while (split(segment_tiles, warps, 1) > limit) {
    if (warps > std::min(half, segment_tiles)) {
      --warps;
    } else if (segment_tiles > 1) {
      segment_tiles = segment_tiles * 7 / 8;
      warps = std::min<int64_t>(kMaxWarps, segment_tiles);
    } else {
      STD_TORCH_CHECK(false, "the scan needs ", forward_shared(p, io),
                      " bytes of shared memory for ", s.states, " states and rank ", s.rank,
                      ", the device has ", limit);
    }
  }
  if (2 * split(segment_tiles, std::min(warps, half), 1) > limit) split(segment_tiles, warps, 1);
  // Tiles of channels that share the rows of proj, while the device has enough to do.
  const int64_t segments = p.segments;
  for (int64_t n = std::min<int64_t>(channel_tiles, 8); n > 1; --n) {
    const int64_t blocks = walks / channel_tiles * ceil_div(channel_tiles, n) * segments;
    if (2 * blocks * p.warps * 32 < device.target_threads()) continue;
    const ScanPlan before = p;
    if (2 * split(segment_tiles, std::min(warps, half), n) <= limit) break;
    p = before;
  }
  return p;
}

void launch_forward(const ScanDevice& device, ScanForward args,
                    const std::vector<int64_t>& orders) {
  check_strides({args.x, args.delta, args.sum, args.y});
  check_strides({args.low, args.B, args.C});
  args.pack_weights = true;
  if (args.plan.segments > 1) {
    for (const ScanDirections& directions : batches(1, orders)) {
      args.directions = directions;
      device.forward(args, true);
      args.pack_weights = false;
      device.combine(args);
    }
  }
  for (const ScanDirections& directions : batches(args.plan.segments, orders)) {
    args.directions = directions;
    device.forward(args, false);
    args.pack_weights = false;
  }
}

void launch_backward(const ScanDevice& device, ScanBackward args,
                     const std::vector<int64_t>& orders) {
  check_strides({args.x, args.delta, args.grad_y, args.sum, args.grad_x, args.grad_delta});
  const ScanSizes& s = args.sizes;
  const auto fits = [&](auto zero) {
    using T = decltype(zero);
    return (s.states == 1 ? BackwardScan<T, 1, false>::Shared::size(s, true)
                          : BackwardScan<T, kBackwardGroup, false>::Shared::size(s, true)) <=
           device.max_shared();
  };
  args.keep_weight_on_chip = s.rank > 0 && (args.io == DeviceIo::kDouble ? fits(0.0) : fits(0.0f));
  const auto all = batches(s.segments, orders);
  if (s.segments > 1) {
    for (const ScanDirections& directions : all) {
      args.directions = directions;
      device.backward(args, true);
      device.combine({s, args.io, directions, args.params.A, args.carry, args.segment_dt});
    }
  }
  for (const ScanDirections& directions : all) {
    args.directions = directions;
    device.backward(args, false);
  }
}

Tensor empty_segments(const Tensor& like, const ScanPlan& p, ScalarType acc) {
  const int64_t segments = p.segments > 1 ? p.segments : 0;
  return empty_on(like, {2, p.batch, p.directions, segments, p.states, p.channels}, acc);
}

ScanScratch::ScanScratch(const Tensor& like, const ScanSizes& s, ScalarType acc)
    : carry(empty_on(like, {2, s.batch, s.directions, s.segments, s.states, s.channels}, acc)),
      segment_dt(empty_on(like, {s.batch, s.directions, s.segments, s.channels}, acc)) {}

void set_segments(ScanForward& args, const Tensor& segments) {
  args.decay = segments.data_ptr();
  args.state = static_cast<char*>(args.decay) + segments.numel() / 2 * segments.element_size();
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

Tensor transpose_last_two(const Tensor& value) {
  const int64_t last = value.dim() - 1;
  return as_contiguous(torch::stable::transpose(value, last - 1, last));
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
