// Vectors of one register with the few functions that the scans need, in the vector extension of
// gcc and clang, so that one source serves every instruction set. Included once in each file that
// is compiled for an instruction set, inside that file's own namespace: nothing here may be merged
// with another file's version of it by the linker. The file defines MMVMAMBA_VECTOR_BYTES.

#define MMVMAMBA_INLINE inline __attribute__((always_inline))
// For what runs once a chunk: copies of it in every caller would only make the build longer.
#define MMVMAMBA_NOINLINE __attribute__((noinline))

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
  // Round to nearest even; a NaN keeps its top bits and is made quiet, lest rounding make it inf.
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

// ---- load and store of the first `lanes` elements; the other lanes are zero ----

template <typename T>
MMVMAMBA_INLINE auto load_lanes(const T* p, int lanes) {
  using acc_t = typename AccOf<T>::type;
  constexpr int size = VecOf<acc_t>::size;
  if (lanes == size) return load(p);
  T buffer[size] = {};
  for (int i = 0; i < lanes; ++i) buffer[i] = p[i];
  return load(buffer);
}
template <typename T, typename V>
MMVMAMBA_INLINE void store_lanes(T* p, V v, int lanes) {
  constexpr int size = sizeof(V) / sizeof(v[0]);
  if (lanes == size) {
    store(p, v);
    return;
  }
  T buffer[size];
  store(buffer, v);
  for (int i = 0; i < lanes; ++i) p[i] = buffer[i];
}

// ---- functions ----

// 2^x; 0 below the smallest normal exponent, inf above the largest, NaN for NaN.
MMVMAMBA_INLINE vfloat exp2v(vfloat x) {
  vfloat clamped = (x < -126.f) ? broadcast<vfloat>(-126.f) : x;
  clamped = (clamped > 127.9999f) ? broadcast<vfloat>(127.9999f) : clamped;
  // Adding 1.5 * 2^23 rounds to the nearest integer and leaves it in the low bits.
  const float magic = 12582912.f;
  vfloat shifted = clamped + magic;
  vint n = (vint)shifted;
  vfloat f = clamped - (shifted - magic);  // [-0.5, 0.5]
  // (2^f - 1) / f by interpolation at Chebyshev nodes, error 8e-9.
  vfloat p = f * 1.545336197353356e-4f + 1.3391093247266345e-3f;
  p = p * f + 9.618082183394121e-3f;
  p = p * f + 5.550356682386405e-2f;
  p = p * f + 0.24022650761348438f;
  p = p * f + 0.693147188116349f;
  p = p * f + 1.f;
  vfloat y = (vfloat)((n << 23) + (vint)p);
  y = (x < -126.f) ? vfloat{} : y;
  y = (x >= 128.f) ? broadcast<vfloat>(__builtin_inff()) : y;
  return (x == x) ? y : x;
}

// softplus(x) = log(1 + exp(x)), x itself above 20 as in PyTorch, and its derivative.
template <bool kWithSlope>
MMVMAMBA_INLINE vfloat softplus(vfloat x, vfloat* slope) {
  vfloat c = (x > 20.f) ? broadcast<vfloat>(20.f) : x;
  c = (c < -87.f) ? broadcast<vfloat>(-87.f) : c;
  // e = exp(c): c = n ln2 + r, ln2 in two parts so that r is exact to the last bit.
  const float magic = 12582912.f;
  vfloat shifted = c * 1.44269504088896341f + magic;
  vint n = (vint)shifted;
  vfloat nf = shifted - magic;
  vfloat r = c - nf * 0.693359375f;
  r = r + nf * 2.12194440e-4f;
  vfloat p = r * 1.9891180158282143e-4f + 1.393382048977602e-3f;
  p = p * r + 8.333310754576892e-3f;
  p = p * r + 4.1666463386339524e-2f;
  p = p * r + 0.16666666681794626f;
  p = p * r + 0.5000000013620138f;
  p = p * (r * r) + r + 1.f;
  vfloat e = (vfloat)((n << 23) + (vint)p);
  // 1 + e = 2^k (1 + f) with 1 + f in [0.75, 1.5); f is formed from e itself, so that a small e
  // keeps all its digits.
  vfloat u = 1.f + e;
  vint k = ((vint)u - 0x3f400000) >> 23;
  vfloat scale = (vfloat)(0x3f800000 - (k << 23));  // 2^-k
  vfloat f = e * scale + (scale - 1.f);
  // (log1p(f) - f + f^2 / 2) / f^3 by interpolation at Chebyshev nodes, error 3e-8.
  vfloat q = f * 4.292479123106283e-2f - 9.573024769506802e-2f;
  q = q * f + 0.11687483142460783f;
  q = q * f - 0.12639807129696046f;
  q = q * f + 0.14267795359767133f;
  q = q * f - 0.16660738350250506f;
  q = q * f + 0.20000149869797484f;
  q = q * f - 0.2500005792729901f;
  q = q * f + 0.33333333123157305f;
  vfloat f2 = f * f;
  vfloat kf = __builtin_convertvector(k, vfloat);
  vfloat tail = q * (f2 * f) + kf * -2.12194440e-4f;
  vfloat y = kf * 0.693359375f + (f + (tail - 0.5f * f2));
  if (kWithSlope) *slope = (x > 20.f) ? broadcast<vfloat>(1.f) : e / u;
  return (x < 20.f) ? y : x;
}

// float64 serves gradient checks and is not tuned: the C library's functions, lane by lane.
MMVMAMBA_INLINE vdouble exp2v(vdouble x) {
  for (int i = 0; i < VecOf<double>::size; ++i) x[i] = ::exp2(x[i]);
  return x;
}
template <bool kWithSlope>
MMVMAMBA_INLINE vdouble softplus(vdouble x, vdouble* slope) {
  vdouble y = x;
  for (int i = 0; i < VecOf<double>::size; ++i) {
    const double e = ::exp(x[i] > 20. ? 20. : x[i]);
    if (x[i] <= 20.) y[i] = ::log1p(e);
    if (kWithSlope) (*slope)[i] = x[i] > 20. ? 1. : e / (1. + e);
  }
  return y;
}

// SiLU's factor 1 / (1 + exp(-x)).
template <typename V>
MMVMAMBA_INLINE V sigmoid(V x) {
  return 1 / (1 + exp2v(x * -1.44269504088896341));
}
MMVMAMBA_INLINE vfloat sigmoid(vfloat x) { return 1.f / (1.f + exp2v(x * -1.44269504088896341f)); }

// ---- transposition of a square of vectors, and sums over lanes ----

template <int kStride, typename V, typename M>
MMVMAMBA_INLINE void transpose_step(V* rows) {
  constexpr int size = sizeof(V) / sizeof(rows[0][0]);
  M low, high;  // indices into the concatenation of two rows
  for (int i = 0; i < size; ++i) {
    low[i] = (i & kStride) ? size + i - kStride : i;
    high[i] = (i & kStride) ? size + i : i + kStride;
  }
  for (int i = 0; i < size; ++i) {
    if (i & kStride) continue;
    V a = rows[i], b = rows[i + kStride];
#if defined(__clang__)
    V x, y;
    for (int j = 0; j < size; ++j) {
      x[j] = low[j] < size ? a[low[j]] : b[low[j] - size];
      y[j] = high[j] < size ? a[high[j]] : b[high[j] - size];
    }
    rows[i] = x;
    rows[i + kStride] = y;
#else
    rows[i] = __builtin_shuffle(a, b, low);
    rows[i + kStride] = __builtin_shuffle(a, b, high);
#endif
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

// out[i] = sum of the lanes of rows[i], for i < count; adds in an order that depends on nothing.
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
