// The ops between the matrix products of a block, for one instruction set. Included as `vec.h` is.

template <typename io_t>
struct FusedOps {
  using V = vfloat;
  static constexpr int kLanes = VecOf<float>::size;

  static int lanes_at(int64_t channels, int64_t c) {
    return static_cast<int>(std::min<int64_t>(kLanes, channels - c));
  }

  // f(c, lanes) for c = 0, kLanes, ...: first whole vectors, with a constant number of lanes, then
  // the rest.
  template <typename F>
  static MMVMAMBA_INLINE void for_each_vector(int64_t channels, F f) {
    const int64_t whole = channels - channels % kLanes;
    for (int64_t c = 0; c < whole; c += kLanes) f(c, kLanes);
    if (whole < channels) f(whole, static_cast<int>(channels - whole));
  }

  // The first lanes of v; the others become zero.
  static MMVMAMBA_INLINE V first_lanes(V v, int lanes) {
    if (lanes == kLanes) return v;
    vint lane;
    for (int i = 0; i < kLanes; ++i) lane[i] = i;
    return (lane < lanes) ? v : V{};
  }

  // LayerNorm of the rows [begin, end) of x or x + y.
  static void layer_norm(const NormRows& p, int64_t begin, int64_t end) {
    const int64_t C = p.channels;
    Scratch<V> scratch(ceil_div(C, kLanes));
    V* row = scratch.vectors(ceil_div(C, kLanes));
    const io_t* x = static_cast<const io_t*>(p.x);
    const io_t* y = static_cast<const io_t*>(p.y);
    io_t* sums = static_cast<io_t*>(p.sum);
    io_t* out = static_cast<io_t*>(p.out);
    for (int64_t i = begin * C; i < end * C; i += C) {
      V total{};
      for_each_vector(C, [&](int64_t c, int lanes) {
        V value = load_lanes(x + i + c, lanes);
        if (y != nullptr) value = value + load_lanes(y + i + c, lanes);
        row[c / kLanes] = value;
        total = total + value;
        if (sums != nullptr) {
          store_lanes(sums + i + c, value + load_lanes(p.shift + c, lanes), lanes);
        }
      });
      const V mean = add_lanes(total) / static_cast<float>(C);
      V squares{};
      for_each_vector(C, [&](int64_t c, int lanes) {
        const V centered = first_lanes(row[c / kLanes] - mean, lanes);
        row[c / kLanes] = centered;
        squares = squares + centered * centered;
      });
      const float variance = add_lanes(squares)[0] / static_cast<float>(C);
      const float scale = 1.f / std::sqrt(variance + p.eps);
      for_each_vector(C, [&](int64_t c, int lanes) {
        const V value = (row[c / kLanes] * scale) * load_lanes(p.weight + c, lanes) +
                        load_lanes(p.bias + c, lanes);
        store_lanes(out + i + c, value, lanes);
      });
    }
  }

  // x = gelu(x + bias) for the rows [begin, end).
  static void bias_gelu(const BiasRows& p, int64_t begin, int64_t end) {
    const int64_t C = p.channels, whole = C - C % (4 * kLanes);
    io_t* x = static_cast<io_t*>(p.x);
    for (int64_t i = begin * C; i < end * C; i += C) {
      for (int64_t c = 0; c < whole; c += 4 * kLanes) {
        constexpr int N = 4;
        V value[N];
        MMVMAMBA_EACH value[u] = load(x + i + c + u * kLanes) + load(p.bias + c + u * kLanes);
        gelu<N>(value, value);
        MMVMAMBA_EACH store(x + i + c + u * kLanes, value[u]);
      }
      for (int64_t c = whole; c < C; c += kLanes) {
        const int lanes = lanes_at(C, c);
        V value = load_lanes(x + i + c, lanes) + load_lanes(p.bias + c, lanes);
        gelu<1>(&value, &value);
        store_lanes(x + i + c, value, lanes);
      }
    }
  }

  // silu of a depthwise 3 x 3 convolution with a border of zeros, for the rows of positions
  // [begin, end) of all maps.
  static void depthwise_silu(const DepthwiseMaps& p, int64_t begin, int64_t end) {
    const int64_t W = p.width;
    for (int64_t row = begin; row < end; ++row) {
      convolve<1>(p, row, 0, true);
      int64_t w = 1;
      for (; w + kSideBySide < W; w += kSideBySide) convolve<kSideBySide>(p, row, w, false);
      for (; w < W; ++w) convolve<1>(p, row, w, w + 1 == W);
    }
  }

  // All channels of N positions from column w on; at an edge of the map N is 1.
  template <int N>
  static MMVMAMBA_INLINE void convolve(const DepthwiseMaps& p, int64_t row, int64_t w, bool edge) {
    for (int64_t c = 0; c < p.channels; c += kLanes) {
      convolve_vector<N>(p, row, w, c, lanes_at(p.channels, c), edge);
    }
  }
  template <int N>
  static MMVMAMBA_INLINE void convolve_vector(const DepthwiseMaps& p, int64_t row, int64_t w,
                                              int64_t c, int lanes, bool edge) {
    const int64_t h = row % p.height, W = p.width, C = p.channels;
    const int64_t padded = ceil_div(C, kLanes) * kLanes;
    const io_t* x = static_cast<const io_t*>(p.x) + c;
    const float* weight = p.weight + c;
    const V bias = load(p.bias + c);
    V sum[N];
    MMVMAMBA_EACH sum[u] = bias;
    for (int64_t i = -1; i <= 1; ++i) {
      if (h + i < 0 || h + i >= p.height) continue;
      const io_t* line = x + ((row + i) * W + w) * C;
      const float* taps = weight + 3 * (i + 1) * padded;
      const V left = load(taps), middle = load(taps + padded), right = load(taps + 2 * padded);
      if (!edge) {
        V in[N + 2];
        MMVMAMBA_UNROLL for (int u = 0; u < N + 2; ++u) in[u] =
            load_lanes(line + (u - 1) * C, lanes);
        MMVMAMBA_EACH sum[u] = sum[u] + left * in[u] + middle * in[u + 1] + right * in[u + 2];
      } else {
        if (w > 0) sum[0] = sum[0] + left * load_lanes(line - C, lanes);
        sum[0] = sum[0] + middle * load_lanes(line, lanes);
        if (w + 1 < W) sum[0] = sum[0] + right * load_lanes(line + C, lanes);
      }
    }
    silu<N>(sum, sum);
    io_t* y = static_cast<io_t*>(p.y) + (row * W + w) * C + c;
    MMVMAMBA_EACH store_lanes(y + u * C, sum[u], lanes);
  }
};
