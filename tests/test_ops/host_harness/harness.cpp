// The CUDA kernels on the CPU: the blocks and threads of every launch one after the other, with the
// functions that the .cu files compile, behind the host code of the GPU. `mmvmamba_host::set`
// chooses the order of the threads and the split of the work: a result that depends on the order of
// threads would be a race on a GPU.
#include <cstring>
#include <memory>
#include <vector>

#include "cuda/scan_backward.h"
#include "cuda/scan_device.h"
#include "cuda/scan_forward.h"
#include "register_on_host.h"

namespace mmvmamba {
namespace {

struct Settings {
  bool descending = false;
  int64_t target_blocks = 512, max_shared = 99 * 1024;
  int64_t launches = 0, blocks = 0;
} settings;

template <class Thread>
class HostBlock {
 public:
  explicit HostBlock(int threads) : own_(threads) {
    // Registers and shared memory hold anything at first.
    std::memset(static_cast<void*>(own_.data()), 0x7f, own_.size() * sizeof(Thread));
  }
  int threads() const { return static_cast<int>(own_.size()); }
  template <class F>
  void each(F f) {
    for (int i = 0; i < threads(); ++i) {
      const int thread = settings.descending ? threads() - 1 - i : i;
      f(thread, own_[thread]);
    }
  }

 private:
  std::vector<Thread> own_;
};

template <class Scan>
void run(const typename Scan::Args& args, bool summary, int64_t shared) {
  const ScanSizes& s = args.sizes;
  STD_TORCH_CHECK(shared <= settings.max_shared, "a block asks for ", shared, " bytes");
  STD_TORCH_CHECK(s.lanes <= kMaxLanes, "a block asks for too many threads");
  const int64_t blocks = s.batch * s.segments * (s.channels / s.group_channels) * s.group_blocks *
                         (summary ? args.directions.count : 1);
  ++settings.launches;
  settings.blocks += blocks;
  for (int64_t i = 0; i < blocks; ++i) {
    const int64_t index = settings.descending ? blocks - 1 - i : i;
    // Allocated to the byte, so that a sanitizer sees what is read or written beyond it.
    std::unique_ptr<unsigned char[]> memory(new unsigned char[shared]);
    std::memset(memory.get(), 0x7f, shared);
    HostBlock<typename Scan::Thread> block(static_cast<int>(s.lanes * Scan::kWalkers));
    Scan::run(block, args, index, memory.get());
  }
}

template <template <typename, int, bool> class Scan, int kMany, class Args, class... More>
void dispatch(const Args& args, bool summary, More... more) {
  const auto with_group = [&](auto io, auto group) {
    using io_t = decltype(io);
    constexpr int kGroup = decltype(group)::value;
    using Summary = Scan<io_t, kGroup, true>;
    using Full = Scan<io_t, kGroup, false>;
    summary ? run<Summary>(args, true, Summary::Shared::size(args.sizes, more...))
            : run<Full>(args, false, Full::Shared::size(args.sizes, more...));
  };
  const auto with_io = [&](auto io) {
    args.sizes.states == 1 ? with_group(io, std::integral_constant<int, 1>())
                           : with_group(io, std::integral_constant<int, kMany>());
  };
  switch (args.io) {
    case DeviceIo::kFloat:
      return with_io(0.f);
    case DeviceIo::kHalf:
      return with_io(torch::headeronly::Half());
    case DeviceIo::kBFloat16:
      return with_io(torch::headeronly::BFloat16());
    case DeviceIo::kDouble:
      return with_io(0.);
  }
}

void set(bool descending, int64_t target_blocks, int64_t max_shared) {
  settings = {descending, target_blocks, max_shared};
}
std::tuple<int64_t, int64_t> counts() { return {settings.launches, settings.blocks}; }

}  // namespace

ScanDevice::ScanDevice(const Tensor&) {}
DeviceType ScanDevice::type() { return DeviceType::CPU; }
int64_t ScanDevice::target_blocks() const { return settings.target_blocks; }
int64_t ScanDevice::max_shared() const { return settings.max_shared; }
void ScanDevice::forward(const ScanForward& args, bool summary) const {
  dispatch<ForwardScan, kForwardGroup>(args, summary);
}
void ScanDevice::backward(const ScanBackward& args, bool summary) const {
  dispatch<BackwardScan, kBackwardGroup>(args, summary, args.keep_weight_on_chip);
}
void ScanDevice::combine(const ScanCarry& args) const {
  const ScanSizes& s = args.sizes;
  const int64_t count = s.channels * s.states * s.batch * args.directions.count;
  for (int64_t i = 0; i < count; ++i) {
    args.io == DeviceIo::kDouble ? combine_segments<double>(args, i)
                                 : combine_segments<float>(args, i);
  }
}

STABLE_TORCH_LIBRARY_FRAGMENT(mmvmamba, m) {
  m.def("set(bool descending, int target_blocks, int max_shared) -> ()");
  m.def("counts() -> (int, int)");
}

STABLE_TORCH_LIBRARY_IMPL(mmvmamba, CompositeExplicitAutograd, m) {
  m.impl("set", TORCH_BOX(&set));
  m.impl("counts", TORCH_BOX(&counts));
}

}  // namespace mmvmamba
