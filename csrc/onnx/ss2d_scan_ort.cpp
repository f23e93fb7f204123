// ss2d_scan as a custom op of ONNX Runtime, mmvmamba::SS2DScan, on a CPU in float32.
//
// Neither torch nor ONNX Runtime's headers are needed: with the sources in csrc/cpu that have none,
// this is a library of its own (docs/deployment.md).
#include <algorithm>
#include <atomic>
#include <exception>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "../cpu/dispatch.h"
#include "ort_api.h"

#if defined(_WIN32)
#define MMVMAMBA_EXPORT extern "C" __declspec(dllexport)
#else
#define MMVMAMBA_EXPORT extern "C" __attribute__((visibility("default")))
#endif

namespace mmvmamba {
namespace {

using Sizes = std::vector<int64_t>;

constexpr size_t kInputs = 6;  // x, proj, dt_weight, dt_bias, A, D

// A call of ONNX Runtime that failed.
struct Failure {
  ort::Status* status;
};

void check(ort::Status* status) {
  if (status != nullptr) throw Failure{status};
}

// Runs a function and returns its error, if there is one. No exception may leave this library.
template <typename F>
ort::Status* guarded(const ort::Api* api, F function) {
  try {
    function();
    return nullptr;
  } catch (const Failure& failure) {
    return failure.status;
  } catch (const std::exception& error) {
    return ort::CreateStatus::call(api, ort::kFail, error.what());
  }
}

struct Tensor {
  void* data = nullptr;
  Sizes sizes;

  Tensor(const ort::Api* api, const ort::KernelContext* context, size_t index) {
    const ort::Value* value = nullptr;
    ort::ShapeInfo* info = nullptr;
    size_t rank = 0;
    check(ort::GetInput::call(api, context, index, &value));
    check(ort::GetData::call(api, value, &data));
    check(ort::GetShapeInfo::call(api, value, &info));
    ort::Status* status = ort::GetRank::call(api, info, &rank);
    sizes.resize(rank);
    if (status == nullptr) status = ort::GetSizes::call(api, info, sizes.data(), rank);
    ort::ReleaseShapeInfo::call(api, info);
    check(status);
  }
};

void check_shape(const char* name, const Tensor& value, const Sizes& sizes) {
  if (value.sizes == sizes) return;
  std::string text = std::string(name) + " must have shape";
  for (int64_t size : sizes) text += " " + std::to_string(size);
  text += ", but got";
  for (int64_t size : value.sizes) text += " " + std::to_string(size);
  throw std::invalid_argument(text);
}

class Scan {
 public:
  Scan(const ort::Api* api, const ort::KernelInfo* info) : api_(api) {
    size_t count = 0;
    check(ort::GetInts::call(api, info, "orders", nullptr, &count));
    orders_.resize(count);
    check(ort::GetInts::call(api, info, "orders", orders_.data(), &count));
    const auto known = [](int64_t order) { return order >= 0 && order <= 3; };
    if (orders_.empty() || !std::all_of(orders_.begin(), orders_.end(), known)) {
      throw std::invalid_argument("orders must be one or more of 0, 1, 2 and 3");
    }
  }

  const ort::Api* api() const { return api_; }

  void compute(ort::KernelContext* context) const {
    const Tensor x(api_, context, 0), proj(api_, context, 1), dt_weight(api_, context, 2),
        dt_bias(api_, context, 3), A(api_, context, 4), D(api_, context, 5);
    if (x.sizes.size() != 4 || dt_weight.sizes.size() != 3 || A.sizes.size() != 3) {
      throw std::invalid_argument("x must have 4 dimensions, dt_weight and A must have 3");
    }
    const int64_t N = x.sizes[0], H = x.sizes[1], W = x.sizes[2], C = x.sizes[3],
                  K = orders_.size(), R = dt_weight.sizes[2], S = A.sizes[2];
    if (R == 0 || S == 0) throw std::invalid_argument("rank and states must be at least 1");
    check_shape("proj", proj, {N, H, W, K, R + 2 * S});
    check_shape("dt_weight", dt_weight, {K, C, R});
    check_shape("dt_bias", dt_bias, {K, C});
    check_shape("A", A, {K, C, S});
    check_shape("D", D, {K, C});
    ort::Value* out = nullptr;
    void* y = nullptr;
    check(ort::GetOutput::call(api_, context, 0, x.sizes.data(), x.sizes.size(), &out));
    check(ort::GetData::call(api_, out, &y));
    if (N * H * W * C == 0) return;

    const Kernels kernels = best_kernels(Io::kFloat);
    const int64_t blocks = ceil_div(C, kernels.lanes);
    const int64_t groups = groups_of(blocks, N);
    const SS2DSizes sizes{N, H, W, C, K, R, S, groups, orders_.data()};
    const std::unique_ptr<float[]> rows(new float[N * K * H * W * (R + 2 * S)]);
    parallel_for(context, N * K,
                 [&](int64_t i) { kernels.ss2d.pack(sizes, proj.data, rows.get(), i, i + 1); });
    const SS2DParams params{dt_weight.data, dt_bias.data, A.data, D.data};
    const SS2DForward args{sizes, x.data, rows.get(), params, y, true, nullptr};
    parallel_for(context, N * groups, [&](int64_t i) { kernels.ss2d.forward(args, i, i + 1); });
  }

 private:
  // Runs function(i) for 0 <= i < count on the threads of ONNX Runtime.
  template <typename F>
  void parallel_for(const ort::KernelContext* context, int64_t count, F function) const {
    struct Work {
      F& function;
      std::atomic<bool> out_of_memory;
    } work{function, {false}};
    const ort::Task task = [](void* data, size_t index) {
      Work& work = *static_cast<Work*>(data);
      try {
        work.function(index);
      } catch (const std::bad_alloc&) {
        work.out_of_memory = true;
      }
    };
    check(ort::ParallelFor::call(api_, context, task, count, 0, &work));
    if (work.out_of_memory) throw std::runtime_error("out of memory");
  }

  const ort::Api* api_;
  Sizes orders_;
};

ort::Status* create(const ort::CustomOp*, const ort::Api* api, const ort::KernelInfo* info,
                    void** kernel) {
  return guarded(api, [&] { *kernel = new Scan(api, info); });
}

ort::Status* compute(void* kernel, ort::KernelContext* context) {
  const Scan& scan = *static_cast<const Scan*>(kernel);
  return guarded(scan.api(), [&] { scan.compute(context); });
}

ort::CustomOp make_op() {
  ort::CustomOp op{};
  op.version = ort::kVersion;
  op.name = [](const ort::CustomOp*) { return "SS2DScan"; };
  op.provider = [](const ort::CustomOp*) { return "CPUExecutionProvider"; };
  op.input_type = op.output_type = [](const ort::CustomOp*, size_t) { return ort::kFloat; };
  op.input_count = [](const ort::CustomOp*) { return kInputs; };
  op.output_count = [](const ort::CustomOp*) { return size_t{1}; };
  // 0: required, and in the provider's own memory.
  op.input_kind = op.output_kind = op.input_memory = [](const ort::CustomOp*, size_t) { return 0; };
  op.create = create;
  op.compute = compute;
  op.destroy = [](void* kernel) { delete static_cast<Scan*>(kernel); };
  op.first_version = op.last_version = [](const ort::CustomOp*) { return 1; };
  return op;
}

}  // namespace
}  // namespace mmvmamba

// Called by ONNX Runtime for each session's options.
MMVMAMBA_EXPORT mmvmamba::ort::Status* RegisterCustomOps(mmvmamba::ort::SessionOptions* options,
                                                         const mmvmamba::ort::ApiBase* base) {
  using namespace mmvmamba;
  const ort::Api* api = base->get_api(ort::kVersion);
  if (api == nullptr) {
    return ort::CreateStatus::call(base->get_api(1), ort::kFail,
                                   "mmvmamba needs ONNX Runtime 1.17 or later");
  }
  static const ort::CustomOp op = make_op();
  return guarded(api, [&] {
    // One domain serves all sessions and stays for the life of the process.
    static ort::Domain* const domain = [&] {
      ort::Domain* value = nullptr;
      check(ort::CreateDomain::call(api, "mmvmamba", &value));
      check(ort::AddOp::call(api, value, &op));
      return value;
    }();
    check(ort::AddDomain::call(api, options, domain));
  });
}
