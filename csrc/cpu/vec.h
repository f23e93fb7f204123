// Vectors of one register with the few functions that the scans need, in the vector extension of
// gcc and clang, so that one source serves every instruction set. Included once in each file that
// is compiled for an instruction set, inside that file's own namespace: nothing here may be merged
// with another file's version of it by the linker. The file defines MMVMAMBA_VECTOR_BYTES.

#define MMVMAMBA_INLINE inline __attribute__((always_inline))
// For a lambda, before its body. As a function called for each block, it would keep its sums in
// memory and load its constants again.
#define MMVMAMBA_INLINE_LAMBDA __attribute__((always_inline))
// For what runs once a chunk: copies of it in every caller would only make the build longer.
#define MMVMAMBA_NOINLINE __attribute__((noinline))
// Before a loop over at most eight vectors: unrolls it while an array of them can still become
// registers. Left to itself gcc unrolls later, and clears, stores and loads the array around loops.
#if defined(__clang__)
#define MMVMAMBA_UNROLL _Pragma("unroll")
#else
#define MMVMAMBA_UNROLL _Pragma("GCC unroll 8")
#endif
// For u = 0 .. N - 1, where N is a constant of at most 2 * kSideBySide.
#define MMVMAMBA_EACH MMVMAMBA_UNROLL for (int u = 0; u < N; ++u)

typedef float vfloat __attribute__((vector_size(MMVMAMBA_VECTOR_BYTES)));
typedef int32_t vint __attribute__((vector_size(MMVMAMBA_VECTOR_BYTES)));
typedef uint32_t vuint __attribute__((vector_size(MMVMAMBA_VECTOR_BYTES)));
typedef double vdouble __attribute__((vector_size(MMVMAMBA_VECTOR_BYTES)));
typedef int64_t vlong __attribute__((vector_size(MMVMAMBA_VECTOR_BYTES)));
typedef uint16_t vhalf __attribute__((vector_size(MMVMAMBA_VECTOR_BYTES / 2)));

// bfloat16 as it lies in memory.
struct bf16 {
  uint16_t bits;
};

template <typename T>
struct VecOf;
template <>
struct VecOf<float> {
  using type = vfloat;
  using mask = vint;
  static constexpr int size = MMVMAMBA_VECTOR_BYTES / 4;
};
template <>
struct VecOf<double> {
  using type = vdouble;
  using mask = vlong;
  static constexpr int size = MMVMAMBA_VECTOR_BYTES / 8;
};

// The type that sums and states have for an I/O type.
template <typename T>
struct AccOf {
  using type = float;
};
template <>
struct AccOf<double> {
  using type = double;
};

template <typename V, typename T>
MMVMAMBA_INLINE V broadcast(T value) {
  return V{} + value;
}

// ---- load and store of whole vectors, with conversion ----

MMVMAMBA_INLINE vfloat load(const float* p) {
  vfloat v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}
MMVMAMBA_INLINE vdouble load(const double* p) {
  vdouble v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}
MMVMAMBA_INLINE vfloat load(const bf16* p) {
  vhalf h;
  __builtin_memcpy(&h, p, sizeof(h));
  vuint wide = __builtin_convertvector(h, vuint) << 16;
  return (vfloat)wide;
}
MMVMAMBA_INLINE void store(float* p, vfloat v) { __builtin_memcpy(p, &v, sizeof(v)); }
MMVMAMBA_INLINE void store(double* p, vdouble v) { __builtin_memcpy(p, &v, sizeof(v)); }
MMVMAMBA_INLINE void store(bf16* p, vfloat v) {
  vuint bits = (vuint)v;
  // Round to nearest even; a NaN keeps its top bits and is made quiet, so that rounding does not
  // turn it into inf.
  vuint rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  vuint nan = (bits >> 16) | 0x40u;
  vhalf h = __builtin_convertvector((v == v) ? rounded : nan, vhalf);
  __builtin_memcpy(p, &h, sizeof(h));
}

MMVMAMBA_INLINE float to_acc(float v) { return v; }
MMVMAMBA_INLINE double to_acc(double v) { return v; }
MMVMAMBA_INLINE float to_acc(bf16 v) {
  uint32_t bits = static_cast<uint32_t>(v.bits) << 16;
  float f;
  __builtin_memcpy(&f, &bits, sizeof(f));
  return f;
}

// The inverse of to_acc.
MMVMAMBA_INLINE void set(float& to, float v) { to = v; }
MMVMAMBA_INLINE void set(double& to, double v) { to = v; }
MMVMAMBA_INLINE void set(bf16& to, float v) {
  uint32_t bits;
  __builtin_memcpy(&bits, &v, sizeof(bits));
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  to.bits = static_cast<uint16_t>(v == v ? rounded : (bits >> 16) | 0x40u);
}

// Copies a short row without the overhead of a call.
template <typename T>
MMVMAMBA_INLINE void copy_row(T* to, const T* from, int64_t count) {
  int64_t i = 0;
  for (; i + 4 <= count; i += 4) __builtin_memcpy(to + i, from + i, 4 * sizeof(T));
  for (; i < count; ++i) __builtin_memcpy(to + i, from + i, sizeof(T));
}

// ---- load and store of the first `lanes` elements; the other lanes are zero ----

template <typename T>
MMVMAMBA_INLINE auto load_lanes(const T* p, int lanes) {
  using acc_t = typename AccOf<T>::type;
  constexpr int size = VecOf<acc_t>::size;
  if (lanes == size) return load(p);
  if (lanes < 0 || lanes > size) __builtin_unreachable();  // gcc warns of a copy that is too long
  T buffer[size] = {};
  copy_row(buffer, p, lanes);
  return load(buffer);
}
template <typename T, typename V>
MMVMAMBA_INLINE void store_lanes(T* p, V v, int lanes) {
  constexpr int size = sizeof(V) / sizeof(v[0]);
  if (lanes == size) {
    store(p, v);
    return;
  }
  if (lanes < 0 || lanes > size) __builtin_unreachable();
  T buffer[size];
  store(buffer, v);
  copy_row(p, buffer, lanes);
}

// ---- functions ----

// They take N independent vectors, step by step side by side: a chain of dependent operations is
// longer than what a processor looks ahead, and one chain at a time would wait.

// y = exp(x) where n = round(x / ln2) is in [-126, 127], and anything elsewhere.
template <int N>
MMVMAMBA_INLINE void exp_in_range(const vfloat* x, vfloat* y) {
  vfloat shifted[N], r[N], p[N];
  // Adding 1.5 * 2^23 rounds to the nearest integer and leaves it in the low bits.
  const float magic = 12582912.f;
  MMVMAMBA_EACH shifted[u] = x[u] * 1.44269504088896341f + magic;
  // r = x - n ln2 in [-0.35, 0.35], ln2 in two parts so that r is exact to the last bit.
  MMVMAMBA_EACH r[u] = x[u] - (shifted[u] - magic) * 0.693359375f;
  MMVMAMBA_EACH r[u] = r[u] + (shifted[u] - magic) * 2.12194440e-4f;
  // (exp(r) - 1 - r) / r^2, a minimax fit: error of exp(r) 3e-9.
  MMVMAMBA_EACH p[u] = r[u] * 1.381422191e-3f + 8.368898665e-3f;
  MMVMAMBA_EACH p[u] = p[u] * r[u] + 4.166840572e-2f;
  MMVMAMBA_EACH p[u] = p[u] * r[u] + 0.1666651913f;
  MMVMAMBA_EACH p[u] = p[u] * r[u] + 0.4999999335f;
  MMVMAMBA_EACH p[u] = p[u] * r[u] + 1.f;
  MMVMAMBA_EACH p[u] = p[u] * r[u] + 1.f;
  MMVMAMBA_EACH y[u] = (vfloat)(((vint)shifted[u] << 23) + (vint)p[u]);
}

// y = exp(x); 0 where that is no normal number, inf above the largest, NaN for NaN.
template <int N>
MMVMAMBA_INLINE void expv(const vfloat* x, vfloat* y) {
  vfloat e[N];
  exp_in_range<N>(x, e);
  MMVMAMBA_EACH e[u] = (x[u] < 88.7228f) ? e[u] : x[u] + __builtin_inff();
  MMVMAMBA_EACH y[u] = (x[u] < -87.3f) ? vfloat{} : e[u];
}

// y = log(1 + exp(x)) = max(x, 0) + log(1 + exp(-|x|)), and its derivative. Above 20, where PyTorch
// returns x, the second term is below half a unit in the last place of x.
template <int N, bool kWithSlope>
MMVMAMBA_INLINE void softplus(const vfloat* x, vfloat* y, vfloat* slope) {
  vfloat e[N], q[N];
  MMVMAMBA_EACH q[u] = (vfloat)((vint)x[u] | INT32_MIN);  // -|x|
  exp_in_range<N>(q, e);
  MMVMAMBA_EACH e[u] = (q[u] < -87.3f) ? vfloat{} : e[u];
  // (log1p(e) - e) / e^2 for e in [0, 1], a minimax fit: error of log1p(e) 3e-8.
  MMVMAMBA_EACH q[u] = e[u] * 5.3661827131e-3f - 3.0071439278e-2f;
  MMVMAMBA_EACH q[u] = q[u] * e[u] + 7.9214137192e-2f;
  MMVMAMBA_EACH q[u] = q[u] * e[u] - 0.13754659723f;
  MMVMAMBA_EACH q[u] = q[u] * e[u] + 0.19154083613f;
  MMVMAMBA_EACH q[u] = q[u] * e[u] - 0.24857281511f;
  MMVMAMBA_EACH q[u] = q[u] * e[u] + 0.33321338671f;
  MMVMAMBA_EACH q[u] = q[u] * e[u] - 0.49999648764f;
  MMVMAMBA_EACH q[u] = q[u] * (e[u] * e[u]) + e[u];
  MMVMAMBA_EACH y[u] = q[u] + ((x[u] < 0.f) ? vfloat{} : x[u]);  // NaN for NaN
  if constexpr (kWithSlope) {
    MMVMAMBA_EACH slope[u] = ((x[u] < 0.f) ? e[u] : broadcast<vfloat>(1.f)) / (1.f + e[u]);
  }
}

// y = gelu(x) = x Phi(x). With q(t) = Phi(-t) for t = |x|, log2 q is a minimax fit on [0, 8] whose
// error in Phi is 5e-8, the rounding of float32.
template <int N>
MMVMAMBA_INLINE void gelu(const vfloat* x, vfloat* y) {
  vfloat t[N], z[N], r[N], p[N], q[N];
  const float magic = 12582912.f;
  MMVMAMBA_EACH t[u] = (vfloat)((vint)x[u] & 0x7fffffff);
  MMVMAMBA_EACH t[u] = (t[u] < 8.f) ? t[u] : broadcast<vfloat>(8.f);
  MMVMAMBA_EACH z[u] = t[u] * -2.77204971e-6f + 3.8620753e-5f;
  MMVMAMBA_EACH z[u] = z[u] * t[u] - 1.82547624e-4f;
  MMVMAMBA_EACH z[u] = z[u] * t[u] - 1.45870093e-4f;
  MMVMAMBA_EACH z[u] = z[u] * t[u] + 7.07547174e-3f;
  MMVMAMBA_EACH z[u] = z[u] * t[u] - 5.25050287e-2f;
  MMVMAMBA_EACH z[u] = z[u] * t[u] - 0.459204907f;
  MMVMAMBA_EACH z[u] = z[u] * t[u] - 1.15110572f;
  MMVMAMBA_EACH z[u] = z[u] * t[u] - 0.999999978f;
  // q = 2^n 2^r with r in [-0.5, 0.5]
  MMVMAMBA_EACH q[u] = z[u] + magic;
  MMVMAMBA_EACH r[u] = z[u] - (q[u] - magic);
  MMVMAMBA_EACH p[u] = r[u] * 1.535336192e-4f + 1.339887441e-3f;
  MMVMAMBA_EACH p[u] = p[u] * r[u] + 9.618437358e-3f;
  MMVMAMBA_EACH p[u] = p[u] * r[u] + 5.550332471e-2f;
  MMVMAMBA_EACH p[u] = p[u] * r[u] + 0.2402264791f;
  MMVMAMBA_EACH p[u] = p[u] * r[u] + 0.6931472029f;
  MMVMAMBA_EACH p[u] = p[u] * r[u] + 1.f;
  MMVMAMBA_EACH q[u] = (vfloat)(((vint)q[u] << 23) + (vint)p[u]);
  MMVMAMBA_EACH q[u] = (t[u] < 8.f) ? q[u] : vfloat{};
  MMVMAMBA_EACH y[u] = x[u] * ((x[u] < 0.f) ? q[u] : 1.f - q[u]);
}

// float64 serves gradient checks and is not tuned: the C library's functions, lane by lane.
template <int N>
MMVMAMBA_INLINE void expv(const vdouble* x, vdouble* y) {
  MMVMAMBA_EACH {
    vdouble e{};
    for (int i = 0; i < VecOf<double>::size; ++i) e[i] = ::exp(x[u][i]);
    y[u] = e;
  }
}
template <int N, bool kWithSlope>
MMVMAMBA_INLINE void softplus(const vdouble* x, vdouble* y, vdouble* slope) {
  MMVMAMBA_EACH {
    vdouble value{}, derivative{};
    for (int i = 0; i < VecOf<double>::size; ++i) {
      const double v = x[u][i], e = ::exp(v > 20. ? 20. : v);
      value[i] = v <= 20. ? ::log1p(e) : v;
      derivative[i] = v > 20. ? 1. : e / (1. + e);
    }
    y[u] = value;
    if (kWithSlope) slope[u] = derivative;
  }
}

// Vectors that are worked on side by side.
constexpr int kSideBySide = 4;

// f<N>(t) for t = 0, N, 2 N, ... with N = kSideBySide, then f<1>(t) for the rest.
template <typename F>
MMVMAMBA_INLINE void for_each_block(int64_t length, F f) {
  int64_t t = 0;
  for (; t + kSideBySide <= length; t += kSideBySide) {
    f(std::integral_constant<int, kSideBySide>{}, t);
  }
  for (; t < length; ++t) f(std::integral_constant<int, 1>{}, t);
}

// for_each_block with blocks of 2 * kSideBySide before.
template <typename F>
MMVMAMBA_INLINE void for_each_wide_block(int64_t length, F f) {
  constexpr int kWide = 2 * kSideBySide;
  int64_t t = 0;
  for (; t + kWide <= length; t += kWide) f(std::integral_constant<int, kWide>{}, t);
  for (; t + kSideBySide <= length; t += kSideBySide) {
    f(std::integral_constant<int, kSideBySide>{}, t);
  }
  for (; t < length; ++t) f(std::integral_constant<int, 1>{}, t);
}

// y = silu(x) = x / (1 + exp(-x)). The reciprocal comes from the bits of the number and three steps
// of Newton's method, which take less time than a division.
template <int N>
MMVMAMBA_INLINE void silu(const vfloat* x, vfloat* y) {
  vfloat z[N], e[N], r[N];
  MMVMAMBA_EACH z[u] = (x[u] > -87.f) ? -x[u] : broadcast<vfloat>(87.f);
  MMVMAMBA_EACH z[u] = (z[u] > -87.f) ? z[u] : broadcast<vfloat>(-87.f);
  exp_in_range<N>(z, e);
  MMVMAMBA_EACH e[u] = e[u] + 1.f;
  MMVMAMBA_EACH r[u] = (vfloat)(0x7ef311c7 - (vint)e[u]);
  MMVMAMBA_EACH r[u] = r[u] * (2.f - e[u] * r[u]);
  MMVMAMBA_EACH r[u] = r[u] * (2.f - e[u] * r[u]);
  MMVMAMBA_EACH r[u] = r[u] + r[u] * (1.f - e[u] * r[u]);
  MMVMAMBA_EACH y[u] = (x[u] < -87.f) ? vfloat{} : x[u] * r[u];
}

// SiLU's factor 1 / (1 + exp(-x)).
template <typename V>
MMVMAMBA_INLINE V sigmoid(V x) {
  using T = typename std::remove_reference<decltype(x[0])>::type;
  const V negative = -x;
  V y;
  expv<1>(&negative, &y);
  return T(1) / (T(1) + y);
}

// ---- transposition of a square of vectors, and sums over lanes ----

// The lane of the concatenation of two rows that lane i of the first, or of the second, becomes.
template <int kStride>
constexpr int lane_of_first(int i, int size) {
  return (i & kStride) ? size + i - kStride : i;
}
template <int kStride>
constexpr int lane_of_second(int i, int size) {
  return (i & kStride) ? size + i : i + kStride;
}

// Exchanges a row's lanes with those of the row kStride below it.
#if defined(__clang__)
template <int kStride, typename M, typename V, int... kLane>
MMVMAMBA_INLINE void exchange(V& a, V& b, std::integer_sequence<int, kLane...>) {
  constexpr int size = sizeof...(kLane);
  const V first = __builtin_shufflevector(a, b, lane_of_first<kStride>(kLane, size)...);
  b = __builtin_shufflevector(a, b, lane_of_second<kStride>(kLane, size)...);
  a = first;
}
#else
template <int kStride, typename M, typename V, int... kLane>
MMVMAMBA_INLINE void exchange(V& a, V& b, std::integer_sequence<int, kLane...>) {
  constexpr int size = sizeof...(kLane);
  const V first = __builtin_shuffle(a, b, M{lane_of_first<kStride>(kLane, size)...});
  b = __builtin_shuffle(a, b, M{lane_of_second<kStride>(kLane, size)...});
  a = first;
}
#endif

template <int kStride, typename V, typename M>
MMVMAMBA_INLINE void transpose_step(V* rows) {
  constexpr int size = sizeof(V) / sizeof(rows[0][0]);
  for (int i = 0; i < size; ++i) {
    if (i & kStride) continue;
    exchange<kStride, M>(rows[i], rows[i + kStride], std::make_integer_sequence<int, size>{});
  }
}

// rows[i][j] <-> rows[j][i] for a square of as many vectors as a vector has lanes.
template <typename V>
MMVMAMBA_INLINE void transpose(V* rows) {
  using T = typename std::remove_reference<decltype(rows[0][0])>::type;
  using M = typename VecOf<typename std::remove_cv<T>::type>::mask;
  constexpr int size = VecOf<typename std::remove_cv<T>::type>::size;
  transpose_step<1, V, M>(rows);
  if constexpr (size > 2) transpose_step<2, V, M>(rows);
  if constexpr (size > 4) transpose_step<4, V, M>(rows);
  if constexpr (size > 8) transpose_step<8, V, M>(rows);
}

// The sum of the lanes in all lanes, in a fixed order.
template <int kStride, typename M, typename V>
MMVMAMBA_INLINE V add_lanes_apart(V v) {
  constexpr int size = sizeof(V) / sizeof(v[0]);
  V low = v, high = v;
  exchange<kStride, M>(low, high, std::make_integer_sequence<int, size>{});
  return low + high;
}
template <typename V>
MMVMAMBA_INLINE V add_lanes(V v) {
  using T = typename std::remove_cv<typename std::remove_reference<decltype(v[0])>::type>::type;
  using M = typename VecOf<T>::mask;
  constexpr int size = VecOf<T>::size;
  v = add_lanes_apart<1, M>(v);
  if constexpr (size > 2) v = add_lanes_apart<2, M>(v);
  if constexpr (size > 4) v = add_lanes_apart<4, M>(v);
  if constexpr (size > 8) v = add_lanes_apart<8, M>(v);
  return v;
}

// (lanes, length) in memory, a row each `stride` elements -> [length] vectors, zero where there is
// no lane.
template <typename T, typename V>
MMVMAMBA_NOINLINE void load_columns(const T* from, int64_t stride, int lanes, int64_t length,
                                    V* to) {
  constexpr int size = sizeof(V) / sizeof(to[0][0]);
  for (int64_t i = 0; i < length; i += size) {
    const int count = static_cast<int>(length - i < size ? length - i : size);
    V square[size];
    for (int c = 0; c < size; ++c) {
      square[c] = c < lanes ? load_lanes(from + c * stride + i, count) : V{};
    }
    transpose(square);
    for (int j = 0; j < count; ++j) to[i + j] = square[j];
  }
}

// The inverse of load_columns.
template <typename T, typename V>
MMVMAMBA_NOINLINE void store_columns(const V* from, int64_t stride, int lanes, int64_t length,
                                     T* to) {
  constexpr int size = sizeof(V) / sizeof(from[0][0]);
  for (int64_t i = 0; i < length; i += size) {
    const int count = static_cast<int>(length - i < size ? length - i : size);
    V square[size];
    for (int j = 0; j < size; ++j) square[j] = j < count ? from[i + j] : V{};
    transpose(square);
    for (int c = 0; c < lanes; ++c) store_lanes(to + c * stride + i, square[c], count);
  }
}

// out[i] = sum of the lanes of rows[i], for i < count; adds in a fixed order.
template <typename T, typename V>
MMVMAMBA_NOINLINE void sum_lanes(const V* rows, int64_t count, T* out) {
  constexpr int size = VecOf<T>::size;
  for (int64_t i = 0; i < count; i += size) {
    V square[size];
    const int64_t n = count - i < size ? count - i : size;
    for (int64_t j = 0; j < size; ++j) square[j] = j < n ? rows[i + j] : V{};
    transpose(square);
    V total = square[0];
    for (int j = 1; j < size; ++j) total = total + square[j];
    store_lanes(out + i, total, static_cast<int>(n));
  }
}
