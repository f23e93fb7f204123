// The emulator itself. It is compiled without a sanitizer, whatever the kernels are compiled with:
// what it keeps is no memory of theirs. CUDA_EMULATOR_THREAD and CUDA_EMULATOR_ADDRESS say that
// they run under ThreadSanitizer or AddressSanitizer, which are told of each switch.
#include "emulator.h"

#include <sys/mman.h>

#include <algorithm>
#include <climits>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <string>

#ifdef CUDA_EMULATOR_THREAD
extern "C" {
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned flags);
void __tsan_destroy_fiber(void* fiber);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void __tsan_acquire(void* address);
void __tsan_release(void* address);
void AnnotateIgnoreWritesBegin(const char*, int);
void AnnotateIgnoreWritesEnd(const char*, int);
void AnnotateBenignRaceSized(const char*, int, const volatile void*, size_t, const char*);
}
#endif
#ifdef CUDA_EMULATOR_ADDRESS
extern "C" {
void __sanitizer_start_switch_fiber(void** save, const void* bottom, size_t size);
void __sanitizer_finish_switch_fiber(void* save, const void** bottom, size_t* size);
void __asan_unpoison_memory_region(const void volatile* address, size_t size);
}
#endif

// Saves the registers that a call keeps on the stack, changes stacks, and restores them.
extern "C" void cuda_emulator_switch(void** from, void* to);
extern "C" void cuda_emulator_start();
#if defined(__x86_64__)
constexpr int kSavedWords = 6;
asm(R"(
.text
.hidden cuda_emulator_switch
.globl cuda_emulator_switch
.type cuda_emulator_switch, @function
cuda_emulator_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size cuda_emulator_switch, .-cuda_emulator_switch
)");
#elif defined(__aarch64__)
constexpr int kSavedWords = 19;  // the last is the return address
asm(R"(
.text
.hidden cuda_emulator_switch
.globl cuda_emulator_switch
.type cuda_emulator_switch, %function
cuda_emulator_switch:
  sub sp, sp, #160
  stp d8, d9, [sp, #0]
  stp d10, d11, [sp, #16]
  stp d12, d13, [sp, #32]
  stp d14, d15, [sp, #48]
  stp x19, x20, [sp, #64]
  stp x21, x22, [sp, #80]
  stp x23, x24, [sp, #96]
  stp x25, x26, [sp, #112]
  stp x27, x28, [sp, #128]
  stp x29, x30, [sp, #144]
  mov x2, sp
  str x2, [x0]
  mov sp, x1
  ldp d8, d9, [sp, #0]
  ldp d10, d11, [sp, #16]
  ldp d12, d13, [sp, #32]
  ldp d14, d15, [sp, #48]
  ldp x19, x20, [sp, #64]
  ldp x21, x22, [sp, #80]
  ldp x23, x24, [sp, #96]
  ldp x25, x26, [sp, #112]
  ldp x27, x28, [sp, #128]
  ldp x29, x30, [sp, #144]
  add sp, sp, #160
  ret
.size cuda_emulator_switch, .-cuda_emulator_switch
)");
#else
#error "the emulator switches stacks on x86-64 and aarch64 alone"
#endif

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace cuda_emulator {
namespace {

constexpr int64_t kMaxThreads = 1024, kUnraisedShared = 48 * 1024;
constexpr size_t kPage = 4096, kPoisonedStack = 8192, kCanary = 256, kAlign = 128;
#if defined(CUDA_EMULATOR_THREAD) || defined(CUDA_EMULATOR_ADDRESS)
constexpr size_t kStack = 256 * 1024;
#else
constexpr size_t kStack = 128 * 1024;
#endif
constexpr size_t kSyncs = 8;  // of a warp that are in use at a time, at most

enum class State { kReady, kBarrier, kWarp, kDone };

struct Thread {
  void* stack_pointer = nullptr;
  char* stack = nullptr;
  // ThreadSanitizer's; a block and the next one must not be ordered by having the same.
  void *fiber = nullptr, *fibers[2] = {};
  void* fake_stack = nullptr;  // AddressSanitizer's
  uint3 index = {};
  int rank = 0;
  State state = State::kReady;
  WarpOp op = WarpOp::kSync;
  unsigned mask = 0;
  Payload* payload = nullptr;
  Site site;
  int sync = 0;  // of the warp operation that the thread takes part in
  std::vector<Copy> pending;
  std::vector<size_t> groups;  // the number of copies up to the end of each
};

struct Warp {
  unsigned live = 0, arrived = 0, exited = 0;
  int operations = 0;
};

struct Launch {
  void (*thread)(void*);
  void* arguments;
  Config config;
  std::map<const void*, std::pair<char*, size_t>> variables;
  char* shared = nullptr;
  std::vector<std::pair<char*, size_t>> used;  // ThreadSanitizer must not see it again
  uint64_t blocks = 0;                         // that have run
  std::string error;
};

struct Block {
  std::vector<Thread*> ready;
  std::vector<Warp> warps;
  int threads = 0, waiting = 0, done = 0, barriers = 0;
  Site barrier;
  bool run_ahead = false;  // a warp goes on until it has to wait
  char* syncs = nullptr;   // ThreadSanitizer's: addresses that stand for barriers
};

std::mutex mutex;  // a launch at a time
Settings the_settings;
uint64_t random_state = 0x9e3779b97f4a7c15;
std::map<const void*, int> limits;
cudaError_t last_error = cudaSuccess;
std::string last_message;

std::vector<std::unique_ptr<Thread>> pool;
Thread host;
Thread* current = &host;
Launch* launch_now = nullptr;
Block block;
#ifdef CUDA_EMULATOR_ADDRESS
const void* host_stack = nullptr;
size_t host_stack_size = 0;
#endif

uint64_t random_below(uint64_t count) {
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  random_state ^= random_state << 17;
  return (random_state >> 32) * count >> 32;
}

template <class T>
void shuffle(std::vector<T>& values, size_t begin) {
  for (size_t i = values.size(); i > begin + 1; --i) {
    std::swap(values[i - 1], values[begin + random_below(i - begin)]);
  }
}

cudaError_t set_error(cudaError_t error, std::string message) {
  last_message = std::move(message);
  return last_error = error;
}

// ---- Fibres -------------------------------------------------------------------------------------

void finish_switch() {
#ifdef CUDA_EMULATOR_ADDRESS
  const void* bottom = nullptr;
  size_t size = 0;
  __sanitizer_finish_switch_fiber(current->fake_stack, &bottom, &size);
  if (host_stack == nullptr) host_stack = bottom, host_stack_size = size;
#endif
}

void switch_to(Thread& to, bool leave = false) {
  Thread& from = *current;
  if (&from == &to) return;
  current = &to;
  threadIdx = to.index;
#ifdef CUDA_EMULATOR_THREAD
  __tsan_switch_to_fiber(to.fiber, 1);  // which orders nothing
#endif
#ifdef CUDA_EMULATOR_ADDRESS
  const bool to_host = &to == &host;
  __sanitizer_start_switch_fiber(leave ? nullptr : &from.fake_stack,
                                 to_host ? host_stack : to.stack,
                                 to_host ? host_stack_size : kStack);
#endif
  (void)leave;
  cuda_emulator_switch(&from.stack_pointer, to.stack_pointer);
  finish_switch();
}

#ifdef CUDA_EMULATOR_THREAD
// What is written and allocated meanwhile, ThreadSanitizer does not take for an access of a thread.
struct Unseen {
  Unseen() { AnnotateIgnoreWritesBegin(__FILE__, __LINE__); }
  ~Unseen() { AnnotateIgnoreWritesEnd(__FILE__, __LINE__); }
};
#else
struct Unseen {
  ~Unseen() {}
};
#endif

// A sync is an address: what was released there happened before what acquires it.
char launch_begin, launch_end;
char* barrier_sync(int index) { return block.syncs + index % 2; }
char* warp_sync(int warp, int index) { return block.syncs + 2 + warp * kSyncs + index % kSyncs; }
void release(char* sync) {
#ifdef CUDA_EMULATOR_THREAD
  __tsan_release(sync);
#endif
  (void)sync;
}
void acquire(char* sync) {
#ifdef CUDA_EMULATOR_THREAD
  __tsan_acquire(sync);
#endif
  (void)sync;
}

// No string: its memory would be lost with a thread that fails.
const char* where(const Thread& thread) {
  static char buffers[2][512];
  static int calls = 0;
  char (&buffer)[512] = buffers[calls++ % 2];
  std::snprintf(buffer, sizeof(buffer), "thread (%u, %u, %u) at %s:%d", thread.index.x,
                thread.index.y, thread.index.z, thread.site.file ? thread.site.file : "its start",
                thread.site.line);
  return buffer;
}

// Ends the launch, and leaves the threads of the block where they are.
[[noreturn]] void abandon(const char* error) {
  {
    const Unseen unseen;
    launch_now->error = error;
  }
  switch_to(host);
  std::abort();
}

const char* name(const Thread& thread) {
  static const char* const names[] = {"__syncwarp", "a shuffle",      "a vote",
                                      "ldmatrix",   "ldmatrix.trans", "movmatrix",
                                      "mma (half)", "mma (bfloat16)"};
  return thread.state == State::kBarrier ? "__syncthreads" : names[static_cast<int>(thread.op)];
}

std::string waiting_threads() {
  std::string message = "a deadlock";
  for (const State state : {State::kBarrier, State::kWarp}) {
    int count = 0;
    const Thread* first = nullptr;
    for (int i = 0; i < block.threads; ++i) {
      if (pool[i]->state != state) continue;
      if (count++ == 0) first = pool[i].get();
    }
    if (first == nullptr) continue;
    message += "; " + std::to_string(count) + " of " + std::to_string(block.threads) +
               " threads wait, the first of them in " + name(*first) + ": " + where(*first);
    if (state == State::kWarp) {
      const Warp& warp = block.warps[first->rank / 32];
      char lanes[64];
      std::snprintf(lanes, sizeof(lanes), ", for lanes %#x", first->mask & ~warp.arrived);
      message += lanes;
    }
  }
  return message;
}

// Runs another thread that can run, or this one; if there is none, the host's.
void resume_next(bool leave = false) {
  if (block.ready.empty()) {
    switch_to(host, leave);
    return;
  }
  if (!block.run_ahead)
    std::swap(block.ready[random_below(block.ready.size())], block.ready.back());
  Thread& next = *block.ready.back();
  block.ready.pop_back();
  switch_to(next, leave);
}

extern "C" void cuda_emulator_start() {
  finish_switch();
  acquire(&launch_begin);
  launch_now->thread(launch_now->arguments);
  Thread& self = *current;
  self.state = State::kDone;
  ++block.done;
  Warp& warp = block.warps[self.rank / 32];
  warp.exited |= 1u << self.rank % 32;
  if (block.waiting > 0) {
    for (int i = 0; i < block.threads; ++i) {
      if (pool[i]->state != State::kBarrier) continue;
      fail("a thread exits while others wait in __syncthreads: thread (%u, %u, %u) exits, %s waits",
           self.index.x, self.index.y, self.index.z, where(*pool[i]));
    }
  }
  for (int lane = 0; warp.arrived >> lane != 0 && lane < 32; ++lane) {
    const Thread& other = *pool[self.rank / 32 * 32 + lane];
    if ((warp.arrived >> lane & 1) && (other.mask >> self.rank % 32 & 1)) {
      fail("a lane exits while others wait for it in %s: thread (%u, %u, %u) exits, %s waits",
           name(other), self.index.x, self.index.y, self.index.z, where(other));
    }
  }
  release(&launch_end);
  resume_next(true);
  std::abort();
}

// Puts a thread's first frame onto its stack.
void prepare(Thread& thread, int rank) {
  const dim3& size = launch_now->config.block;
  const unsigned r = static_cast<unsigned>(rank);
  thread.rank = rank;
  thread.index = {r % size.x, r / size.x % size.y, r / size.x / size.y};
  thread.state = State::kReady;
  thread.site = {};
  thread.fake_stack = nullptr;
  thread.pending.clear();
  thread.groups.clear();
  const Unseen unseen;
#ifdef CUDA_EMULATOR_ADDRESS
  __asan_unpoison_memory_region(thread.stack, kStack);
#endif
#ifdef CUDA_EMULATOR_THREAD
  void*& fiber = thread.fibers[launch_now->blocks % 2];
  if (fiber == nullptr) fiber = __tsan_create_fiber(0);
  thread.fiber = fiber;
#endif
  char* const top = thread.stack + kStack;
  std::memset(top - kPoisonedStack, poison(), kPoisonedStack);
  // As if it had been called: the return address lies above the registers.
  void** frame = reinterpret_cast<void**>(top) - 32;
  std::memset(frame, 0, 32 * sizeof(void*));
  frame[kSavedWords] = reinterpret_cast<void*>(&cuda_emulator_start);
  thread.stack_pointer = frame;
}

void add_to_pool() {
  // A page that nobody may touch lies below the stack.
  void* memory = mmap(nullptr, kStack + kPage, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) std::abort();
  mprotect(memory, kPage, PROT_NONE);
  pool.emplace_back(new Thread);
  pool.back()->stack = static_cast<char*>(memory) + kPage;
#ifdef CUDA_EMULATOR_THREAD
  // Threads of other blocks use it again, in no order.
  AnnotateBenignRaceSized(__FILE__, __LINE__, pool.back()->stack, kStack, "a stack");
#endif
}

// ---- Memory of a block --------------------------------------------------------------------------

// AddressSanitizer sees what lies beyond an allocation by itself. ThreadSanitizer must not see one
// block's memory in another, nor the end of its life, before the launch ends: pages of its own.
char* allocate(size_t bytes) {
  const Unseen unseen;
#if defined(CUDA_EMULATOR_THREAD)
  char* memory = static_cast<char*>(
      mmap(nullptr, bytes + kCanary, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  launch_now->used.emplace_back(memory, bytes + kCanary);
#elif defined(CUDA_EMULATOR_ADDRESS)
  char* memory = nullptr;
  if (posix_memalign(reinterpret_cast<void**>(&memory), kAlign, bytes) != 0) std::abort();
#else
  char* memory = nullptr;
  if (posix_memalign(reinterpret_cast<void**>(&memory), kAlign, bytes + kCanary) != 0) std::abort();
  std::memset(memory + bytes, 0xa5, kCanary);
#endif
  std::memset(memory, poison(), bytes);
  return memory;
}

void release_memory(char* memory, size_t bytes) {
  (void)bytes;
#if !defined(CUDA_EMULATOR_THREAD) && !defined(CUDA_EMULATOR_ADDRESS)
  for (size_t i = 0; i < kCanary && launch_now->error.empty(); ++i) {
    if (static_cast<unsigned char>(memory[bytes + i]) == 0xa5) continue;
    launch_now->error = "a write beyond the " + std::to_string(bytes) +
                        " bytes of shared memory, at byte " + std::to_string(bytes + i);
  }
#endif
#ifndef CUDA_EMULATOR_THREAD
  std::free(memory);
#endif
}

void run_block(uint64_t index) {
  const Config& config = launch_now->config;
  const dim3& grid = config.grid;
  blockIdx = {static_cast<unsigned>(index % grid.x), static_cast<unsigned>(index / grid.x % grid.y),
              static_cast<unsigned>(index / grid.x / grid.y)};
  block.threads = static_cast<int>(config.block.x * config.block.y * config.block.z);
  block.waiting = block.done = block.barriers = 0;
  block.run_ahead = random_below(2) == 0;
  block.warps.assign((block.threads + 31) / 32, {});
  block.ready.clear();
  block.ready.reserve(block.threads);
  while (static_cast<int>(pool.size()) < block.threads) add_to_pool();
  launch_now->shared = allocate(config.shared);
#ifdef CUDA_EMULATOR_THREAD
  block.syncs = allocate(2 + block.warps.size() * kSyncs);
#endif
  for (int i = 0; i < block.threads; ++i) {
    prepare(*pool[i], i);
    block.warps[i / 32].live |= 1u << i % 32;
    block.ready.push_back(pool[i].get());
  }
  shuffle(block.ready, 0);
  resume_next();
  if (block.done < block.threads && launch_now->error.empty()) {
    launch_now->error = waiting_threads();
  }
  ++launch_now->blocks;
  release_memory(launch_now->shared, config.shared);
  for (const auto& variable : launch_now->variables) {
    release_memory(variable.second.first, variable.second.second);
  }
  launch_now->variables.clear();
}

// Those of threads that failed never end: what they did, they did before the launch ended.
void forget_fibers() {
#ifdef CUDA_EMULATOR_THREAD
  for (const auto& thread : pool) {
    for (void*& fiber : thread->fibers) {
      if (fiber == nullptr) continue;
      __tsan_switch_to_fiber(fiber, 1);
      release(&launch_end);
      __tsan_switch_to_fiber(host.fiber, 1);
      __tsan_destroy_fiber(fiber);
      fiber = nullptr;
    }
  }
#endif
}

cudaError_t check(const void* kernel, const Config& config) {
  const auto limit = limits.find(kernel);
  const int64_t allowed = std::min<int64_t>(limit == limits.end() ? kUnraisedShared : limit->second,
                                            the_settings.max_shared);
  const dim3 &g = config.grid, &b = config.block;
  char buffer[512];
  const auto refuse = [&](const char* reason) {
    std::snprintf(buffer, sizeof(buffer),
                  "%s: a launch at %s:%d of (%u, %u, %u) blocks of (%u, %u, %u) threads and %zu "
                  "bytes of shared memory, of which it may have %lld",
                  reason, config.site.file, config.site.line, g.x, g.y, g.z, b.x, b.y, b.z,
                  config.shared, static_cast<long long>(allowed));
    return set_error(cudaErrorInvalidConfiguration, buffer);
  };
  if (g.x == 0 || g.y == 0 || g.z == 0) return refuse("no blocks");
  if (g.x > INT_MAX || g.y > 65535 || g.z > 65535) return refuse("too large a grid");
  const uint64_t threads = static_cast<uint64_t>(b.x) * b.y * b.z;
  if (threads == 0) return refuse("no threads");
  if (threads > kMaxThreads || b.z > 64) return refuse("too many threads");
  if (static_cast<int64_t>(config.shared) > allowed) return refuse("too much shared memory");
  return cudaSuccess;
}

float half_value(uint32_t bits) {
  const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
  const float magnitude = exponent == 0    ? __builtin_ldexpf(mantissa, -24)
                          : exponent == 31 ? (mantissa ? __builtin_nanf("") : __builtin_inff())
                                           : __builtin_ldexpf(1024 + mantissa, exponent - 25);
  return bits & 0x8000 ? -magnitude : magnitude;
}
float bfloat16_value(uint32_t bits) {
  const uint32_t word = bits << 16;
  float value;
  std::memcpy(&value, &word, sizeof(value));
  return value;
}

// Lane 4 g + t has rows g and g + 8 of a and d, column g of b; columns (rows of b) 2 t and 2 t + 1,
// and those 8 further on.
void multiply(const Payload (&in)[32], float (*value)(uint32_t), Payload (&out)[32]) {
  float a[16][16], b[16][8];
  for (int lane = 0; lane < 32; ++lane) {
    const int g = lane / 4, t = lane % 4;
    for (int i = 0; i < 8; ++i) {
      a[g + i / 2 % 2 * 8][2 * t + i % 2 + i / 4 * 8] =
          value(in[lane].word[i / 2] >> i % 2 * 16 & 0xffff);
    }
    for (int i = 0; i < 4; ++i) {
      b[2 * t + i % 2 + i / 2 * 8][g] = value(in[lane].word[4 + i / 2] >> i % 2 * 16 & 0xffff);
    }
  }
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
      float d;
      std::memcpy(&d, &in[lane].word[6 + i], sizeof(d));
      double sum = d;
      for (int k = 0; k < 16; ++k) sum += static_cast<double>(a[row][k]) * b[k][column];
      d = static_cast<float>(sum);
      std::memcpy(&out[lane].word[i], &d, sizeof(d));
    }
  }
}

void combine(WarpOp op, unsigned mask, const Payload (&in)[32], Payload (&out)[32]) {
  unsigned votes = 0;
  for (int lane = 0; lane < 32; ++lane) votes |= (mask >> lane & in[lane].word[0] & 1) << lane;
  if (op == WarpOp::kMmaHalf) return multiply(in, half_value, out);
  if (op == WarpOp::kMmaBFloat16) return multiply(in, bfloat16_value, out);
  for (int lane = 0; lane < 32; ++lane) {
    if (!(mask >> lane & 1)) continue;
    switch (op) {
      case WarpOp::kShuffle: {
        const int source = static_cast<int>(in[lane].word[2]);
        if (mask >> source & 1) {
          out[lane] = in[source];
        } else {
          std::memset(&out[lane], poison(), sizeof(Payload));
        }
        break;
      }
      case WarpOp::kVote:
        out[lane].word[0] = votes;
        break;
      case WarpOp::kRows:
        for (int m = 0; m < 4; ++m) out[lane].row[m] = in[8 * m + lane / 4].row[0];
        break;
      case WarpOp::kRowsTrans:
        for (int i = 0; i < 8; ++i) {
          out[lane].row[i] = in[i / 2 * 8 + lane % 4 * 2 + i % 2].row[0];
        }
        break;
      case WarpOp::kMove: {
        // Lane 4 r + c has columns 2 c and 2 c + 1 of row r.
        const int column = lane / 4, row = lane % 4 * 2;
        const auto half = [&](int r) {
          return in[4 * r + column / 2].word[0] >> column % 2 * 16 & 0xffff;
        };
        out[lane].word[0] = half(row) | half(row + 1) << 16;
        break;
      }
      default:
        break;
    }
  }
}

}  // namespace

Settings& settings() { return the_settings; }

void set_seed(uint64_t seed) {
  the_settings.seed = seed;
  random_state = (seed + 1) * 0x9e3779b97f4a7c15;
}

unsigned char poison() {
#ifdef CUDA_EMULATOR_THREAD
  return 0;  // an index that is read too early must not end the process before the race is found
#else
  return the_settings.seed % 2 == 0 ? 0x7f : 0xff;
#endif
}

void fail(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  char buffer[1024];
  std::vsnprintf(buffer, sizeof(buffer), format, arguments);
  va_end(arguments);
  abandon(buffer);
}

static bool same(Site a, Site b) { return a.line == b.line && std::strcmp(a.file, b.file) == 0; }

void barrier(Site site) {
  Thread& self = *current;
  self.site = site;
  self.state = State::kBarrier;
  if (block.waiting++ == 0) {
    block.barrier = site;
  } else if (!same(block.barrier, site)) {
    fail("the threads of a block wait at different __syncthreads: %s, another at %s:%d",
         where(self), block.barrier.file, block.barrier.line);
  }
  if (block.done > 0) {
    fail("__syncthreads after %d of %d threads have exited: %s", block.done, block.threads,
         where(self));
  }
  char* const sync = barrier_sync(block.barriers);
  release(sync);
  if (block.waiting == block.threads) {
    block.waiting = 0;
    ++block.barriers;
    for (int i = 0; i < block.threads; ++i) {
      pool[i]->state = State::kReady;
      block.ready.push_back(pool[i].get());
    }
    shuffle(block.ready, 0);
  }
  resume_next();
  acquire(sync);
}

void warp_operation(WarpOp op, unsigned mask, Payload& payload, Site site) {
  Thread& self = *current;
  const int first = self.rank / 32 * 32, lane = self.rank % 32;
  Warp& warp = block.warps[self.rank / 32];
  self.site = site;
  self.state = State::kWarp;
  self.op = op;
  self.mask = mask;
  self.payload = &payload;
  if (!(mask >> lane & 1)) {
    fail("%s with a mask of %#x, which lacks the calling lane %d: %s", name(self), mask, lane,
         where(self));
  }
  if (mask & (warp.exited | ~warp.live)) {
    fail("%s with a mask of %#x, of which lanes %#x have exited or do not exist: %s", name(self),
         mask, mask & (warp.exited | ~warp.live), where(self));
  }
  if (warp.arrived & mask) {
    const Thread& other = *pool[first + __builtin_ctz(warp.arrived & mask)];
    if (other.op != op || other.mask != mask) {
      fail(
          "the lanes of a warp wait in different operations: %s in %s with a mask of %#x, %s in %s "
          "with a mask of %#x",
          where(self), name(self), mask, where(other), name(other), other.mask);
    }
    // .aligned: all lanes execute the same instruction.
    const bool aligned = op != WarpOp::kSync && op != WarpOp::kShuffle && op != WarpOp::kVote;
    if (aligned && !same(other.site, site)) {
      fail("the lanes of a warp wait at different instructions: %s and %s, both in %s", where(self),
           where(other), name(self));
    }
    self.sync = other.sync;
  } else {
    self.sync = warp.operations++;
  }
  warp.arrived |= 1u << lane;
  // The others hand over values and order no memory: CUDA does not promise that they do.
  char* const sync = warp_sync(self.rank / 32, self.sync);
  if (op == WarpOp::kSync) release(sync);
  if ((warp.arrived & mask) == mask) {
    if (op != WarpOp::kSync) {
      Payload in[32] = {}, out[32];
      for (int i = 0; i < 32; ++i) {
        if (mask >> i & 1) in[i] = *pool[first + i]->payload;
      }
      combine(op, mask, in, out);
      for (int i = 0; i < 32; ++i) {
        if (mask >> i & 1) *pool[first + i]->payload = out[i];
      }
    }
    warp.arrived &= ~mask;
    const size_t begin = block.ready.size();
    for (int i = 0; i < 32; ++i) {
      if (!(mask >> i & 1)) continue;
      pool[first + i]->state = State::kReady;
      block.ready.push_back(pool[first + i].get());
    }
    shuffle(block.ready, begin);
  }
  resume_next();
  if (op == WarpOp::kSync) acquire(sync);
}

unsigned live_lanes() {
  const Warp& warp = block.warps[current->rank / 32];
  return warp.live & ~warp.exited;
}

void* dynamic_shared() { return launch_now->shared; }

void* shared_variable(const void* key, size_t bytes) {
  const Unseen unseen;
  auto& variable = launch_now->variables[key];
  if (variable.first == nullptr) variable = {allocate(bytes), bytes};
  return variable.first;
}

bool in_shared(const void* from, size_t bytes) {
  const char* const begin = static_cast<const char*>(from);
  const auto inside = [&](const char* memory, size_t size) {
    return begin >= memory && begin + bytes <= memory + size;
  };
  if (inside(launch_now->shared, launch_now->config.shared)) return true;
  for (const auto& variable : launch_now->variables) {
    if (inside(variable.second.first, variable.second.second)) return true;
  }
  return false;
}

void issue_copy(const Copy& copy) {
  const Unseen unseen;
  current->pending.push_back(copy);
}
void commit_copies() {
  const Unseen unseen;
  current->groups.push_back(current->pending.size());
}
bool take_copy(size_t groups, Copy& copy) {
  Thread& self = *current;
  while (self.groups.size() > groups && self.groups.front() == 0) {
    self.groups.erase(self.groups.begin());
  }
  if (self.groups.size() <= groups) return false;
  copy = self.pending.front();
  self.pending.erase(self.pending.begin());
  for (size_t& end : self.groups) --end;
  return true;
}

void run(const void* kernel, const Config& config, void (*thread)(void*), void* arguments) {
  const std::lock_guard<std::mutex> lock(mutex);
  if (check(kernel, config) != cudaSuccess) return;
  const uint64_t count = static_cast<uint64_t>(config.grid.x) * config.grid.y * config.grid.z;
  const dim3& size = config.block;
  the_settings.launches.push_back({static_cast<int64_t>(count),
                                   static_cast<int64_t>(size.x) * size.y * size.z,
                                   static_cast<int64_t>(config.shared)});
  Launch launch{thread, arguments, config, {}, nullptr, {}, 0, {}};
  launch_now = &launch;
  blockDim = config.block;
  gridDim = config.grid;
#ifdef CUDA_EMULATOR_THREAD
  host.fiber = __tsan_get_current_fiber();
#endif
#ifdef CUDA_EMULATOR_ADDRESS
  host_stack = nullptr;
#endif
  std::vector<uint32_t> order(count);
  for (uint64_t i = 0; i < count; ++i) order[i] = static_cast<uint32_t>(i);
  shuffle(order, 0);
  release(&launch_begin);
  for (const uint32_t index : order) {
    run_block(index);
    if (launch.error.empty()) continue;
    char place[512];
    std::snprintf(place, sizeof(place), " [block (%u, %u, %u) of the launch at %s:%d]", blockIdx.x,
                  blockIdx.y, blockIdx.z, config.site.file, config.site.line);
    set_error(cudaErrorLaunchFailure, launch.error + place);
    forget_fibers();
    break;
  }
  acquire(&launch_end);
  for (const auto& memory : launch.used) munmap(memory.first, memory.second);
  launch_now = nullptr;
}

}  // namespace cuda_emulator

// ---- The runtime --------------------------------------------------------------------------------

using cuda_emulator::set_error;
using cuda_emulator::the_settings;

cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock:
      *value = cuda_emulator::kMaxThreads;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlock:
      *value = cuda_emulator::kUnraisedShared;
      return cudaSuccess;
    case cudaDevAttrWarpSize:
      *value = 32;
      return cudaSuccess;
    case cudaDevAttrMultiProcessorCount:
      *value = static_cast<int>(the_settings.multiprocessors);
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor:
      *value = 9;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
      *value = 0;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      *value = static_cast<int>(the_settings.max_shared) + 1024;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = static_cast<int>(the_settings.max_shared);
      return cudaSuccess;
  }
  return set_error(cudaErrorInvalidValue, "the emulator does not know this attribute of a device");
}

cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
  if (value < 0 || value > the_settings.max_shared) {
    return set_error(cudaErrorInvalidValue, "more shared memory than a block may opt in to");
  }
  // The most that there is follows the settings: kernels raise their limit once.
  const std::lock_guard<std::mutex> lock(cuda_emulator::mutex);
  cuda_emulator::limits[kernel] = value == the_settings.max_shared ? INT_MAX : value;
  return cudaSuccess;
}

cudaError_t cudaPeekAtLastError() { return cuda_emulator::last_error; }
cudaError_t cudaGetLastError() {
  const cudaError_t error = cuda_emulator::last_error;
  cuda_emulator::last_error = cudaSuccess;
  return error;
}
const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess ? "no error" : cuda_emulator::last_message.c_str();
}

cudaError_t cudaMalloc(void** memory, size_t bytes) {
  *memory = std::malloc(bytes);
  return cudaSuccess;
}
cudaError_t cudaFree(void* memory) {
  std::free(memory);
  return cudaSuccess;
}
cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) {
  std::memcpy(to, from, bytes);
  return cudaSuccess;
}
cudaError_t cudaMemset(void* memory, int value, size_t bytes) {
  std::memset(memory, value, bytes);
  return cudaSuccess;
}
cudaError_t cudaDeviceSynchronize() { return cudaPeekAtLastError(); }
