// The part of ONNX Runtime's C API that a custom op needs.
//
// ONNX Runtime's wheel has no headers, but its binary interface is stable: the API is a table of
// functions to which releases only append, and a custom op is a table that states the version it
// was written for. The slots below are those of version 17, which ONNX Runtime 1.17 and
// later provide.
#pragma once

#include <cstddef>
#include <cstdint>

namespace mmvmamba {
namespace ort {

constexpr uint32_t kVersion = 17;
constexpr int kFloat = 1;  // ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT
constexpr int kFail = 1;   // ORT_FAIL

struct Status;
struct Value;
struct ShapeInfo;
struct Domain;
struct SessionOptions;
struct KernelInfo;
struct KernelContext;
struct CustomOp;

struct Api;  // the table of functions

// A function of the API, by its place in the table.
template <size_t kSlot, typename Signature>
struct Function;
template <size_t kSlot, typename Result, typename... Args>
struct Function<kSlot, Result(Args...)> {
  static Result call(const Api* api, Args... args) {
    using Pointer = Result (*)(Args...);
    return reinterpret_cast<const Pointer*>(api)[kSlot](args...);
  }
};

using CreateStatus = Function<0, Status*(int code, const char* message)>;
using CreateDomain = Function<26, Status*(const char* name, Domain**)>;
using AddOp = Function<27, Status*(Domain*, const CustomOp*)>;
using AddDomain = Function<28, Status*(SessionOptions*, Domain*)>;
using GetData = Function<51, Status*(const Value*, void**)>;
using GetRank = Function<61, Status*(const ShapeInfo*, size_t*)>;
using GetSizes = Function<62, Status*(const ShapeInfo*, int64_t*, size_t)>;
using GetShapeInfo = Function<65, Status*(const Value*, ShapeInfo**)>;
using GetInput = Function<90, Status*(const KernelContext*, size_t, const Value**)>;
using GetOutput = Function<91, Status*(KernelContext*, size_t, const int64_t*, size_t, Value**)>;
using ReleaseShapeInfo = Function<99, void(ShapeInfo*)>;
using GetInts = Function<163, Status*(const KernelInfo*, const char* name, int64_t*, size_t*)>;
using Task = void (*)(void* data, size_t index);
using ParallelFor = Function<274, Status*(const KernelContext*, Task, size_t, size_t, void* data)>;

struct ApiBase {
  const Api* (*get_api)(uint32_t version);
  const char* (*get_version)();
};

struct CustomOp {
  uint32_t version;
  void* (*create_unchecked)(const CustomOp*, const Api*, const KernelInfo*);
  const char* (*name)(const CustomOp*);
  const char* (*provider)(const CustomOp*);
  int (*input_type)(const CustomOp*, size_t);
  size_t (*input_count)(const CustomOp*);
  int (*output_type)(const CustomOp*, size_t);
  size_t (*output_count)(const CustomOp*);
  void (*compute_unchecked)(void* kernel, KernelContext*);
  void (*destroy)(void* kernel);
  int (*input_kind)(const CustomOp*, size_t);
  int (*output_kind)(const CustomOp*, size_t);
  int (*input_memory)(const CustomOp*, size_t);
  int (*variadic[4])(const CustomOp*);
  Status* (*create)(const CustomOp*, const Api*, const KernelInfo*, void** kernel);
  Status* (*compute)(void* kernel, KernelContext*);
  void* infer_shapes;
  int (*first_version)(const CustomOp*);
  int (*last_version)(const CustomOp*);
  void* aliases[4];
};

}  // namespace ort
}  // namespace mmvmamba
