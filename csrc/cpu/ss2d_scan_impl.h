// ss2d_scan for one instruction set: the walk over a map, sample by sample, direction by
// direction, chunk by chunk, with lanes over channels. Included as `vec.h` is.

template <typename io_t>
struct SS2D {
  using T = typename AccOf<io_t>::type;
  using V = typename VecOf<T>::type;
  static constexpr int kLanes = VecOf<T>::size;

  // Offsets in a block's packed parameters, in vectors.
  struct Layout {
    int64_t A, bias, D, size;
    explicit Layout(const SS2DSizes& s) : A(s.rank), bias(A + s.states), D(bias + 1), size(D + 1) {}
  };

  // One item of work: a sample and its blocks [first, last).
  struct Item {
    int64_t sample, group, first, last;
    Item(const SS2DSizes& s, int64_t index) {
      const int64_t blocks = ceil_div(s.channels, kLanes);
      const int64_t per_group = blocks_per_group(blocks, s.groups);
      sample = index / s.groups;
      group = index % s.groups;
      first = std::min(blocks, group * per_group);
      last = std::min(blocks, first + per_group);
    }
  };

  static int lanes_of(const SS2DSizes& s, int64_t block) {
    return static_cast<int>(std::min<int64_t>(kLanes, s.channels - block * kLanes));
  }

  // What a chunk shares among blocks: its positions, and the row of low-rank time steps, B and C of
  // each, where it lies or converted to T.
  struct Chunk {
    int64_t length;
    int64_t* position;  // [kChunk]
    const T** row;      // [kChunk], each [rank + 2 states]
    T* converted;       // [kChunk][rank + 2 states], where T is not the I/O type
  };

  static MMVMAMBA_NOINLINE void read_chunk(const SS2DSizes& s, const io_t* proj, int64_t sample,
                                           int64_t direction, int64_t start, Chunk& chunk) {
    const int64_t L = s.height * s.width;
    const int64_t inner = s.rank + 2 * s.states;
    chunk.length = std::min(kChunk, L - start);
    Walk walk(s.orders[direction], start, s.height, s.width);
    for (int64_t t = 0; t < chunk.length; ++t, walk.advance()) {
      const int64_t p = walk.position();
      chunk.position[t] = p;
      const io_t* row = proj + ((sample * L + p) * s.directions + direction) * inner;
      if constexpr (std::is_same<io_t, T>::value) {
        chunk.row[t] = row;
      } else {
        T* converted = chunk.converted + t * inner;
        for (int64_t i = 0; i < inner; ++i) converted[i] = to_acc(row[i]);
        chunk.row[t] = converted;
      }
    }
  }

  // dt[t] = softplus(bias + sum_r low[t][r] weight[r]); with its slope where asked for.
  template <bool kWithSlope>
  static MMVMAMBA_INLINE void time_steps(const SS2DSizes& s, const Chunk& chunk, const V* weight,
                                         V bias, V* dt, V* slope) {
    for_each_block(chunk.length, [&](auto block, int64_t t) {
      constexpr int N = decltype(block)::value;
      V sum[N];
      for (int u = 0; u < N; ++u) sum[u] = bias;
      const T* const* low = chunk.row + t;
      for (int64_t r = 0; r < s.rank; ++r) {
        const V w = weight[r];
        for (int u = 0; u < N; ++u) sum[u] = sum[u] + w * low[u][r];
      }
      softplus<N, kWithSlope>(sum, dt + t, kWithSlope ? slope + t : nullptr);
    });
  }

  static int64_t chunk_vectors(const SS2DSizes& s) {
    return ceil_div(kChunk * (sizeof(int64_t) + sizeof(T*)), sizeof(V)) + 2 +
           ceil_div(kChunk * (s.rank + 2 * s.states), kLanes);
  }
  static Chunk take_chunk(const SS2DSizes& s, Scratch<V>& scratch) {
    Chunk chunk;
    chunk.position = scratch.template scalars<int64_t>(kChunk);
    chunk.row = scratch.template scalars<const T*>(kChunk);
    chunk.converted = scratch.template scalars<T>(kChunk * (s.rank + 2 * s.states));
    return chunk;
  }

  static void pack(const SS2DSizes& s, const void* dt_weight, const void* dt_bias, const void* A,
                   const void* D, void* params) {
    const Layout at(s);
    const int64_t blocks = ceil_div(s.channels, kLanes);
    const T log2e = static_cast<T>(kLog2e);
    for (int64_t k = 0; k < s.directions; ++k) {
      for (int64_t c = 0; c < s.channels; ++c) {
        const int64_t row = k * s.channels + c;
        T* out =
            static_cast<T*>(params) + (k * blocks + c / kLanes) * at.size * kLanes + c % kLanes;
        const T* weight = static_cast<const T*>(dt_weight) + row * s.rank;
        const T* rate = static_cast<const T*>(A) + row * s.states;
        for (int64_t r = 0; r < s.rank; ++r) out[r * kLanes] = weight[r];
        for (int64_t i = 0; i < s.states; ++i) out[(at.A + i) * kLanes] = rate[i] * log2e;
        out[at.bias * kLanes] = static_cast<const T*>(dt_bias)[row];
        out[at.D * kLanes] = static_cast<const T*>(D)[row];
      }
    }
  }

  template <int kStates>
  static void forward(const SS2DForward& p, int64_t begin, int64_t end) {
    const SS2DSizes& s = p.sizes;
    const int64_t L = s.height * s.width, C = s.channels, S = s.states;
    const int64_t blocks = ceil_div(C, kLanes), chunks = ceil_div(L, kChunk);
    const int64_t per_group = blocks_per_group(blocks, s.groups);
    const Layout at(s);
    const auto* x = static_cast<const io_t*>(p.x);
    const auto* params = static_cast<const V*>(p.params);
    T* acc = static_cast<T*>(p.acc);
    T* states = static_cast<T*>(p.states);

    Scratch<V> scratch(chunk_vectors(s) + 3 * kChunk + per_group * S);
    Chunk chunk = take_chunk(s, scratch);
    V* xs = scratch.vectors(kChunk);
    V* dt = scratch.vectors(kChunk);
    V* y = scratch.vectors(kChunk);
    V* h = scratch.vectors(per_group * S);

    for (int64_t index = begin; index < end; ++index) {
      const Item item(s, index);
      if (item.first == item.last) continue;
      for (int64_t k = 0; k < s.directions; ++k) {
        for (int64_t i = 0; i < per_group * S; ++i) h[i] = V{};
        for (int64_t g = 0; g < chunks; ++g) {
          read_chunk(s, static_cast<const io_t*>(p.proj), item.sample, k, g * kChunk, chunk);
          for (int64_t b = item.first; b < item.last; ++b) {
            const int lanes = lanes_of(s, b);
            const V* block = params + (k * blocks + b) * at.size;
            V* state = h + (b - item.first) * S;
            if (states != nullptr) {
              T* saved = states + ((item.sample * s.directions + k) * chunks + g) * S * C;
              for (int64_t i = 0; i < S; ++i) {
                store_lanes(saved + i * C + b * kLanes, state[i], lanes);
              }
            }
            const int64_t base = item.sample * L * C + b * kLanes;
            for (int64_t t = 0; t < chunk.length; ++t) {
              xs[t] = load_lanes(x + base + chunk.position[t] * C, lanes);
            }
            time_steps<false>(s, chunk, block, block[at.bias], dt, nullptr);
            scan_chunk<kStates>(chunk.length, S, xs, dt, block + at.A,
                                RowWeights<T>{chunk.row, s.rank},
                                RowWeights<T>{chunk.row, s.rank + S}, state, y);
            const V skip = block[at.D];
            for (int64_t t = 0; t < chunk.length; ++t) {
              T* out = acc + base + chunk.position[t] * C;
              V value = y[t] + skip * xs[t];
              if (k > 0) value = value + load_lanes(out, lanes);
              store_lanes(out, value, lanes);
            }
          }
        }
      }
      convert(s, item, acc, static_cast<io_t*>(p.y));
    }
  }

  // Rounds an item's channels of the sums to the I/O type.
  static void convert(const SS2DSizes& s, const Item& item, const T* acc, io_t* out) {
    if (out == nullptr) return;
    const int64_t L = s.height * s.width, C = s.channels;
    for (int64_t l = item.sample * L; l < (item.sample + 1) * L; ++l) {
      for (int64_t b = item.first; b < item.last; ++b) {
        const int64_t i = l * C + b * kLanes;
        store_lanes(out + i, load_lanes(acc + i, lanes_of(s, b)), lanes_of(s, b));
      }
    }
  }

  // grad_weight[r + v] += sum_t grad[t] low[t][r + v] for v < N, in two sums by the parity of t.
  template <int N>
  static MMVMAMBA_INLINE void add_products(const Chunk& chunk, const V* grad, int64_t r,
                                           V* grad_weight) {
    V even[N] = {}, odd[N] = {};
    int64_t t = 0;
    for (; t + 2 <= chunk.length; t += 2) {
      for (int v = 0; v < N; ++v) even[v] = even[v] + grad[t] * chunk.row[t][r + v];
      for (int v = 0; v < N; ++v) odd[v] = odd[v] + grad[t + 1] * chunk.row[t + 1][r + v];
    }
    if (t < chunk.length) {
      for (int v = 0; v < N; ++v) even[v] = even[v] + grad[t] * chunk.row[t][r + v];
    }
    for (int v = 0; v < N; ++v) grad_weight[r + v] = grad_weight[r + v] + (even[v] + odd[v]);
  }

  // Gradients of the time steps' projection, from grad[t] before softplus.
  //   grad_weight[r] += sum_t grad[t] low[t][r]           lanes over channels
  //   grad_low[t][r] += sum_lanes grad[t] weight[r]       lanes over r: `transposed` holds
  //                                                       weight[r] by channel, r padded
  static MMVMAMBA_INLINE void time_steps_backward(const SS2DSizes& s, const Chunk& chunk,
                                                  const V* grad, const V* transposed,
                                                  V* grad_weight, V* grad_low) {
    const int64_t R = s.rank, row = ceil_div(R, kLanes);
    constexpr int kRows = 4;  // of low for each load of a gradient
    int64_t r = 0;
    for (; r + kRows <= R; r += kRows) add_products<kRows>(chunk, grad, r, grad_weight);
    for (; r < R; ++r) add_products<1>(chunk, grad, r, grad_weight);
    for (int64_t v = 0; v < row; ++v) {
      int64_t t = 0;
      for (; t + 4 <= chunk.length; t += 4) {
        V sum[4];
        for (int u = 0; u < 4; ++u) sum[u] = grad_low[(t + u) * row + v];
        for (int c = 0; c < kLanes; ++c) {
          const V w = transposed[c * row + v];
          for (int u = 0; u < 4; ++u) {
            sum[u] = sum[u] + w * reinterpret_cast<const T*>(grad + t + u)[c];
          }
        }
        for (int u = 0; u < 4; ++u) grad_low[(t + u) * row + v] = sum[u];
      }
      for (; t < chunk.length; ++t) {
        V sum = grad_low[t * row + v];
        for (int c = 0; c < kLanes; ++c) {
          sum = sum + transposed[c * row + v] * reinterpret_cast<const T*>(grad + t)[c];
        }
        grad_low[t * row + v] = sum;
      }
    }
  }

  template <int kStates>
  static void backward(const SS2DBackward& p, int64_t begin, int64_t end) {
    const SS2DSizes& s = p.sizes;
    const int64_t L = s.height * s.width, C = s.channels, S = s.states, R = s.rank;
    const int64_t blocks = ceil_div(C, kLanes), chunks = ceil_div(L, kChunk);
    const int64_t per_group = blocks_per_group(blocks, s.groups), row = ceil_div(R, kLanes);
    const int64_t inner = R + 2 * S;
    const Layout at(s);
    const auto* x = static_cast<const io_t*>(p.x);
    const auto* params = static_cast<const V*>(p.params);
    const T* states = static_cast<const T*>(p.states);
    T* grad_x = static_cast<T*>(p.grad_x_acc);
    T* grad_proj = static_cast<T*>(p.grad_proj);
    V* grad_params = static_cast<V*>(p.grad_params);

    Scratch<V> scratch(chunk_vectors(s) + 6 * kChunk + per_group * (S + kLanes * row) +
                       ChunkRoom<V>::size(S) + kChunk * row + 2 * ceil_div(kChunk * S, kLanes));
    Chunk chunk = take_chunk(s, scratch);
    V* xs = scratch.vectors(kChunk);
    V* gy = scratch.vectors(kChunk);
    V* dt = scratch.vectors(kChunk);
    V* slope = scratch.vectors(kChunk);
    V* gx = scratch.vectors(kChunk);
    V* gdt = scratch.vectors(kChunk);
    V* grad_h = scratch.vectors(per_group * S);
    V* transposed = scratch.vectors(per_group * kLanes * row);
    const ChunkRoom<V> room = scratch.room(S);
    V* grad_low = scratch.vectors(kChunk * row);
    T* sum_B = scratch.template scalars<T>(kChunk * S);
    T* sum_C = scratch.template scalars<T>(kChunk * S);

    for (int64_t index = begin; index < end; ++index) {
      const Item item(s, index);
      if (item.first == item.last) continue;
      for (int64_t k = 0; k < s.directions; ++k) {
        for (int64_t i = 0; i < per_group * S; ++i) grad_h[i] = V{};
        for (int64_t b = item.first; b < item.last; ++b) {
          const T* weight = reinterpret_cast<const T*>(params + (k * blocks + b) * at.size);
          T* out = reinterpret_cast<T*>(transposed + (b - item.first) * kLanes * row);
          for (int c = 0; c < kLanes; ++c) {
            for (int64_t r = 0; r < R; ++r) out[c * row * kLanes + r] = weight[r * kLanes + c];
          }
          V* grad = grad_params + ((item.sample * s.directions + k) * blocks + b) * at.size;
          for (int64_t i = 0; i < at.size; ++i) grad[i] = V{};
        }
        for (int64_t g = chunks - 1; g >= 0; --g) {
          read_chunk(s, static_cast<const io_t*>(p.proj), item.sample, k, g * kChunk, chunk);
          for (int64_t i = 0; i < kChunk * S; ++i) room.grad_B[i] = room.grad_C[i] = V{};
          for (int64_t i = 0; i < kChunk * row; ++i) grad_low[i] = V{};
          for (int64_t b = item.first; b < item.last; ++b) {
            const int lanes = lanes_of(s, b);
            const V* block = params + (k * blocks + b) * at.size;
            V* grad = grad_params + ((item.sample * s.directions + k) * blocks + b) * at.size;
            const T* saved = states + ((item.sample * s.directions + k) * chunks + g) * S * C;
            for (int64_t i = 0; i < S; ++i) {
              room.h[i] = load_lanes(saved + i * C + b * kLanes, lanes);
            }
            const int64_t base = item.sample * L * C + b * kLanes;
            for (int64_t t = 0; t < chunk.length; ++t) {
              const int64_t i = base + chunk.position[t] * C;
              xs[t] = load_lanes(x + i, lanes);
              gy[t] = p.grad_y_is_acc ? load_lanes(static_cast<const T*>(p.grad_y) + i, lanes)
                                      : load_lanes(static_cast<const io_t*>(p.grad_y) + i, lanes);
            }
            time_steps<true>(s, chunk, block, block[at.bias], dt, slope);
            const RowWeights<T> B{chunk.row, R}, weights_C{chunk.row, R + S};
            recompute_chunk<kStates>(chunk.length, S, xs, dt, block + at.A, B, room);
            scan_chunk_backward<kStates>(chunk.length, S, xs, dt, block + at.A, B, weights_C, gy,
                                         room, grad_h + (b - item.first) * S, grad + at.A, gx, gdt);
            V grad_bias{}, grad_D{};
            const V skip = block[at.D];
            for (int64_t t = 0; t < chunk.length; ++t) {
              gdt[t] = gdt[t] * slope[t];
              grad_bias = grad_bias + gdt[t];
              grad_D = grad_D + gy[t] * xs[t];
              T* out = grad_x + base + chunk.position[t] * C;
              V value = gx[t] + skip * gy[t];
              if (k > 0) value = value + load_lanes(out, lanes);
              store_lanes(out, value, lanes);
            }
            grad[at.bias] = grad[at.bias] + grad_bias;
            grad[at.D] = grad[at.D] + grad_D;
            time_steps_backward(s, chunk, gdt, transposed + (b - item.first) * kLanes * row, grad,
                                grad_low);
          }
          sum_lanes(room.grad_B, chunk.length * S, sum_B);
          sum_lanes(room.grad_C, chunk.length * S, sum_C);
          const T* low = reinterpret_cast<const T*>(grad_low);
          for (int64_t t = 0; t < chunk.length; ++t) {
            T* out = grad_proj + (((item.group * s.batch + item.sample) * L + chunk.position[t]) *
                                      s.directions +
                                  k) *
                                     inner;
            copy_row(out, low + t * row * kLanes, R);
            copy_row(out + R, sum_B + t * S, S);
            copy_row(out + R + S, sum_C + t * S, S);
          }
        }
      }
      convert(s, item, grad_x, static_cast<io_t*>(p.grad_x));
    }
  }

  static void forward_any(const SS2DForward& p, int64_t begin, int64_t end) {
    p.sizes.states == 1 ? forward<1>(p, begin, end) : forward<0>(p, begin, end);
  }
  static void backward_any(const SS2DBackward& p, int64_t begin, int64_t end) {
    p.sizes.states == 1 ? backward<1>(p, begin, end) : backward<0>(p, begin, end);
  }
};
