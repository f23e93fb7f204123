// A GPU on the CPU: the threads of a block are fibres of one thread of the host, and run in a
// random order from one barrier or warp operation to the next. A block runs after the other.
#pragma once

#include <cstddef>
#include <cstdint>
#include <tuple>
#include <utility>
#include <vector>

#include "cuda_runtime_api.h"

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
constexpr int warpSize = 32;

namespace cuda_emulator {

struct LaunchRecord {
  int64_t blocks, threads, shared;
};

// What a test chooses, and what it looks at.
struct Settings {
  uint64_t seed = 0;                // of the order of threads and blocks, and of the poison
  int64_t max_shared = 227 * 1024;  // bytes that a block may opt in to
  int64_t multiprocessors = 132;
  int64_t target_blocks = 0;  // in place of the sources' constant; 0 keeps that
  std::vector<LaunchRecord> launches;
};
Settings& settings();
void set_seed(uint64_t seed);

// A place in the sources, which the default arguments of the functions below record.
struct Site {
  const char* file = nullptr;
  int line = 0;
};

// Ends the launch with an error; called by a thread of a kernel.
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

struct Config {
  dim3 grid, block;
  size_t shared;
  Site site;
  Config(dim3 grid_, dim3 block_, size_t shared_ = 0, cudaStream_t = nullptr,
         const char* file = __builtin_FILE(), int line = __builtin_LINE())
      : grid(grid_), block(block_), shared(shared_), site{file, line} {}
};
void run(const void* kernel, const Config& config, void (*thread)(void*), void* arguments);

// kernel<<<config>>>(given...)
template <class... Parameters, class... Given>
void launch(void (*kernel)(Parameters...), const Config& config, Given... given) {
  struct Call {
    void (*kernel)(Parameters...);
    std::tuple<Parameters...> arguments;
  } call{kernel, std::tuple<Parameters...>(given...)};
  const auto thread = [](void* data) {
    const Call& c = *static_cast<const Call*>(data);
    std::apply(c.kernel, c.arguments);
  };
  run(reinterpret_cast<const void*>(kernel), config, thread, &call);
}

// The block's memory. A variable's key is unique in the sources.
void* dynamic_shared();
void* shared_variable(const void* key, size_t bytes);
template <class T, int kIndex>
T& static_shared() {
  static const char key = 0;
  return *static_cast<T*>(shared_variable(&key, sizeof(T)));
}
bool in_shared(const void* from, size_t bytes);

void barrier(Site site);

// Operations of the lanes of a warp. Each lane hands in a payload and gets one back.
enum class WarpOp { kSync, kShuffle, kVote, kRows, kRowsTrans, kMove, kMmaHalf, kMmaBFloat16 };
union Payload {
  uint32_t word[16];
  const char* row[8];
};
void warp_operation(WarpOp op, unsigned mask, Payload& payload, Site site);
unsigned live_lanes();
inline int lane_id() {
  return static_cast<int>((threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z)) %
                          32);
}

// Copies that the current thread has issued and not waited for, in groups.
struct Copy {
  void* to;
  const void* from;
  int bytes;
};
void issue_copy(const Copy& copy);
void commit_copies();
// Takes the oldest copy out while more than `groups` groups are in flight.
bool take_copy(size_t groups, Copy& copy);

unsigned char poison();

}  // namespace cuda_emulator
