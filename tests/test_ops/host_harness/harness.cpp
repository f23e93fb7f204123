// The CUDA kernels on the CPU: the blocks and threads of every launch one after the other, with the
// functions that the .cu files compile, behind the same torch faces. `mmvmamba_host::set` chooses
// the order of the threads and the split of the work: a result that depends on the order of threads
// would be a race on a GPU.
#include <torch/library.h>

#include <cstring>
#include <memory>
#include <vector>

#include "cuda/scan_backward.h"
#include "cuda/scan_face.h"
#include "cuda/scan_forward.h"

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
  TORCH_CHECK(shared <= settings.max_shared, "a block asks for ", shared, " bytes");
  TORCH_CHECK(s.lanes <= kMaxLanes, "a block asks for too many threads");
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
      return with_io(c10::Half());
    case DeviceIo::kBFloat16:
      return with_io(c10::BFloat16());
    case DeviceIo::kDouble:
      return with_io(0.);
  }
}

class HostDevice : public ScanDevice {
 public:
  int64_t target_blocks() const override { return settings.target_blocks; }
  int64_t max_shared() const override { return settings.max_shared; }
  at::DeviceType type() const override { return at::kCPU; }
  void forward(const ScanForward& args, bool summary) const override {
    dispatch<ForwardScan, kForwardGroup>(args, summary);
  }
  void backward(const ScanBackward& args, bool summary) const override {
    dispatch<BackwardScan, kBackwardGroup>(args, summary, args.keep_weight_on_chip);
  }
  void combine(const ScanCarry& args) const override {
    const ScanSizes& s = args.sizes;
    const int64_t count = s.channels * s.states * s.batch * args.directions.count;
    for (int64_t i = 0; i < count; ++i) {
      args.io == DeviceIo::kDouble ? combine_segments<double>(args, i)
                                   : combine_segments<float>(args, i);
    }
  }
};

void set(bool descending, int64_t target_blocks, int64_t max_shared) {
  settings = {descending, target_blocks, max_shared};
}
std::tuple<int64_t, int64_t> counts() { return {settings.launches, settings.blocks}; }

template <auto function>
struct OnHost;
template <class R, class... Args, R (*function)(const ScanDevice&, Args...)>
struct OnHost<function> {
  static R call(Args... args) { return function(HostDevice(), args...); }
};

}  // namespace

TORCH_LIBRARY(mmvmamba_host, m) {
  m.def("set(bool descending, int target_blocks, int max_shared) -> ()", set);
  m.def("counts() -> (int, int)", counts);
  m.def(
      "ss2d_scan(Tensor x, Tensor proj, Tensor dt_weight, Tensor dt_bias, Tensor A, Tensor D, "
      "int[] orders, ScalarType out_dtype, bool save_states) -> (Tensor, Tensor)",
      OnHost<ss2d_scan_on>::call);
  m.def(
      "ss2d_scan_backward(Tensor grad_y, Tensor x, Tensor proj, Tensor dt_weight, Tensor dt_bias, "
      "Tensor A, Tensor D, Tensor states, int[] orders) -> (Tensor, Tensor, Tensor, Tensor, "
      "Tensor, Tensor)",
      OnHost<ss2d_scan_backward_on>::call);
  m.def(
      "selective_scan(Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, "
      "Tensor? delta_bias, bool delta_softplus, bool save_states) -> (Tensor, Tensor, Tensor)",
      OnHost<selective_scan_on>::call);
  m.def(
      "selective_scan_backward(Tensor grad_out, Tensor u, Tensor delta, Tensor A, Tensor B, "
      "Tensor C, Tensor? D, Tensor? z, Tensor? delta_bias, Tensor states, bool delta_softplus) -> "
      "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
      OnHost<selective_scan_backward_on>::call);
}

}  // namespace mmvmamba
