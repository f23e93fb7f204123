// How a call is split into blocks and launches.
#include "scan_launch.h"

#include <algorithm>
#include <initializer_list>
#include <limits>

#include "scan_backward.h"
#include "scan_forward.h"

namespace mmvmamba {
namespace {

// The largest shared memory of any kernel that a call needs. Backwards, the sums of grad dt_weight
// go to memory where they do not fit.
template <typename T>
int64_t least_shared(const ScanSizes& s, ScanKind kind) {
  if (kind == ScanKind::kForward) {
    return s.states == 1 ? ForwardScan<T, 1, false>::Shared::size(s)
                         : ForwardScan<T, kForwardGroup, false>::Shared::size(s);
  }
  return s.states == 1 ? BackwardScan<T, 1, false>::Shared::size(s, false)
                       : BackwardScan<T, kBackwardGroup, false>::Shared::size(s, false);
}

int64_t least_shared(const ScanSizes& s, ScanKind kind, ScalarType io) {
  return io == ScalarType::Double ? least_shared<double>(s, kind) : least_shared<float>(s, kind);
}

// Directions of one axis may share a launch, as their segments hold the same positions; with a
// single segment, all may.
std::vector<ScanDirections> batches(const ScanSizes& s, const std::vector<int64_t>& orders) {
  std::vector<ScanDirections> out;
  const auto add = [&](int64_t k) {
    const bool full = out.empty() || out.back().count == kMaxDirections;
    const bool other_axis =
        !full && s.segments > 1 && along_columns(out.back().order[0]) != along_columns(orders[k]);
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

// The kernels count bytes from one position to the next in 32 bits.
void check_strides(std::initializer_list<MapView> maps) {
  for (const MapView& map : maps) {
    STD_TORCH_CHECK(map.data == nullptr || map.position < (int64_t{1} << 28),
                    "neighboring positions must be less than 2^28 elements apart, but got ",
                    map.position);
  }
}

template <typename Args, typename Launch>
void launch(const ScanDevice& device, Args args, const std::vector<int64_t>& orders, bool backward,
            Launch run) {
  const auto all = batches(args.sizes, orders);
  if (args.sizes.segments > 1) {
    for (const ScanDirections& directions : all) {
      args.directions = directions;
      run(args, true);
      device.combine(
          {args.sizes, args.io, directions, args.params.A, args.carry, args.segment_dt, backward});
    }
  }
  for (const ScanDirections& directions : all) {
    args.directions = directions;
    run(args, false);
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

void split_scan(ScanSizes& s, ScanKind kind, ScalarType io, const ScanDevice& device) {
  STD_TORCH_CHECK(s.length < std::numeric_limits<int32_t>::max(),
                  "a sequence must have less than 2^31 positions, but got ", s.length);
  // The widest block without idle lanes, else the one with the fewest.
  s.lanes = 0;
  for (int64_t lanes = kMaxLanes; lanes > 0; lanes -= kLaneStep) {
    const ScanSizes before = s;
    s.lanes = lanes;
    s.group_blocks = ceil_div(s.group_channels, lanes);
    const bool fits = least_shared(s, kind, io) <= device.max_shared();
    const bool better =
        before.lanes == 0 || s.lanes * s.group_blocks < before.lanes * before.group_blocks;
    if (!fits || !better) s = before;
  }
  if (s.lanes == 0) {
    s.lanes = kLaneStep;
    STD_TORCH_CHECK(false, "the scan needs ", least_shared(s, kind, io),
                    " bytes of shared memory for ", s.states, " states and rank ", s.rank,
                    ", the device has ", device.max_shared());
  }
  s.chunks = ceil_div(s.length, kChunk);
  // Segments cost a summary pass, so only where the threads would fill less than half of the GPU.
  const int64_t walkers = kind == ScanKind::kForward ? ForwardScan<float, 1, false>::kWalkers
                                                     : BackwardScan<float, 1, false>::kWalkers;
  const int64_t threads =
      s.batch * (s.channels / s.group_channels) * s.group_blocks * s.lanes * walkers;
  const int64_t target = device.target_threads();
  const int64_t wanted =
      2 * threads >= target ? 1 : std::min<int64_t>(ceil_div(target, threads), s.chunks);
  s.segment_chunks = ceil_div(s.chunks, wanted);
  s.segments = ceil_div(s.chunks, s.segment_chunks);
  // Rows of states and of the parameters' gradients, and what a row holds.
  const int64_t rows =
      s.batch * s.directions * std::max(s.chunks, s.segments * (s.rank + 3 * s.states + 2));
  STD_TORCH_CHECK(std::max(rows, s.states * s.channels) < std::numeric_limits<int32_t>::max(),
                  "the scan has too many states: ", rows, " rows of ", s.states * s.channels);
}

void launch_forward(const ScanDevice& device, ScanForward args,
                    const std::vector<int64_t>& orders) {
  check_strides({args.x, args.delta, args.sum, args.y});
  launch(device, args, orders, false,
         [&](const ScanForward& a, bool summary) { device.forward(a, summary); });
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
  launch(device, args, orders, true,
         [&](const ScanBackward& a, bool summary) { device.backward(a, summary); });
}

ScanScratch::ScanScratch(const Tensor& like, const ScanSizes& s, ScalarType acc)
    : carry(empty_on(like, {2, s.batch, s.directions, s.segments, s.states, s.channels}, acc)),
      segment_dt(empty_on(like, {s.batch, s.directions, s.segments, s.channels}, acc)) {}

MapView map_nhwc(const Tensor& v) {
  return {v.data_ptr(), v.size(1) * v.size(2) * v.size(3), v.size(3), 1};
}
MapView map_ncl(const Tensor& v) { return {v.data_ptr(), v.stride(0), v.stride(2), v.stride(1)}; }

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
