// ss2d_scan for one instruction set: the walk over a map, sample by sample, direction by
// direction, chunk by chunk, with lanes over channels. Included as `vec.h` is.

template <typename io_t>
struct SS2D {
  using T = typename AccOf<io_t>::type;
  using V = typename VecOf<T>::type;
  static constexpr int kLanes = VecOf<T>::size;

  // Offsets in a block's parameters and in their gradients, in vectors.
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

  // sum[u] += weight rows[u][r] for u < N.
  template <int N>
  static MMVMAMBA_INLINE void add_scaled(V weight, const T* const* rows, int64_t r, V* sum) {
    MMVMAMBA_EACH sum[u] = sum[u] + weight * rows[u][r];
  }

  // dt[t] = softplus(bias + sum_r low[t][r] weight[r]); with its slope where asked for.
  template <bool kWithSlope>
  static MMVMAMBA_INLINE void time_steps(const SS2DSizes& s, const Chunk& chunk, const V* weight,
                                         V bias, V* dt, V* slope) {
    for_each_block(chunk.length, [&](auto block, int64_t t) {
      constexpr int N = decltype(block)::value;
      // Four partial sums lose fewer digits than one. As arrays of their own they stay in
      // registers.
      V sum[N], second[N], third[N], fourth[N];
      MMVMAMBA_EACH sum[u] = second[u] = third[u] = fourth[u] = V{};
      const T* const* low = chunk.row + t;
      int64_t r = 0;
      for (; r + 4 <= s.rank; r += 4) {
        add_scaled<N>(weight[r], low, r, sum);
        add_scaled<N>(weight[r + 1], low, r + 1, second);
        add_scaled<N>(weight[r + 2], low, r + 2, third);
        add_scaled<N>(weight[r + 3], low, r + 3, fourth);
      }
      for (; r < s.rank; ++r) add_scaled<N>(weight[r], low, r, sum);
      MMVMAMBA_EACH sum[u] = (sum[u] + second[u]) + (third[u] + fourth[u]);
      // The bias last: it is often the largest term, and every addition to it would round.
      MMVMAMBA_EACH sum[u] = sum[u] + bias;
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

  // One block's parameters in one direction: dt weights, A, dt bias, D, channels in lanes.
  static MMVMAMBA_INLINE void read_params(const SS2DSizes& s, const SS2DParams& from, int64_t block,
                                          int64_t k, V* to) {
    const Layout at(s);
    const int64_t row = k * s.channels + block * kLanes;
    const int lanes = lanes_of(s, block);
    load_columns(static_cast<const T*>(from.dt_weight) + row * s.rank, s.rank, lanes, s.rank, to);
    load_columns(static_cast<const T*>(from.A) + row * s.states, s.states, lanes, s.states,
                 to + at.A);
    to[at.bias] = load_lanes(static_cast<const T*>(from.dt_bias) + row, lanes);
    to[at.D] = load_lanes(static_cast<const T*>(from.D) + row, lanes);
  }
  static MMVMAMBA_INLINE void write_grads(const SS2DSizes& s, const V* from, int64_t sample,
                                          int64_t block, int64_t k, const SS2DParamGrads& to) {
    const Layout at(s);
    const int64_t row = (sample * s.directions + k) * s.channels + block * kLanes;
    const int lanes = lanes_of(s, block);
    store_columns(from, s.rank, lanes, s.rank, static_cast<T*>(to.dt_weight) + row * s.rank);
    store_columns(from + at.A, s.states, lanes, s.states, static_cast<T*>(to.A) + row * s.states);
    store_lanes(static_cast<T*>(to.dt_bias) + row, from[at.bias], lanes);
    store_lanes(static_cast<T*>(to.D) + row, from[at.D], lanes);
  }

  // One block's channels of a map, copied out so that they lie densely: a walk in any order then
  // meets a sixth of the pages (at 96 channels) and stays in the cache.
  template <typename from_t>
  static MMVMAMBA_NOINLINE void read_map(const SS2DSizes& s, const from_t* from, int64_t sample,
                                         int64_t block, V* to) {
    const int64_t L = s.height * s.width, C = s.channels;
    const int lanes = lanes_of(s, block);
    from += sample * L * C + block * kLanes;
    for (int64_t l = 0; l < L; ++l) to[l] = load_lanes(from + l * C, lanes);
  }
  template <typename to_t>
  static MMVMAMBA_NOINLINE void write_map(const SS2DSizes& s, const V* from, int64_t sample,
                                          int64_t block, to_t* to) {
    const int64_t L = s.height * s.width, C = s.channels;
    const int lanes = lanes_of(s, block);
    to += sample * L * C + block * kLanes;
    for (int64_t l = 0; l < L; ++l) store_lanes(to + l * C, from[l], lanes);
  }

  // Where the states before a chunk are saved.
  template <typename P>
  static auto* saved_states(const P& p, int64_t sample, int64_t k, int64_t g, int64_t block) {
    const SS2DSizes& s = p.sizes;
    const int64_t chunks = ceil_div(s.height * s.width, kChunk);
    using U = std::conditional_t<std::is_const<std::remove_pointer_t<decltype(p.states)>>::value,
                                 const T, T>;
    return static_cast<U*>(p.states) +
           ((sample * s.directions + k) * chunks + g) * s.states * s.channels + block * kLanes;
  }

  struct ForwardRoom {
    Chunk chunk;
    V* params;          // [Layout::size]
    V *x, *dt, *y, *h;  // [kChunk], [S]
    V *x_map, *y_map;   // [L]
    static int64_t size(const SS2DSizes& s) {
      return chunk_vectors(s) + Layout(s).size + 3 * kChunk + s.states;
    }
    ForwardRoom(const SS2DSizes& s, Scratch<V>& scratch, Scratch<V>& maps)
        : chunk(take_chunk(s, scratch)),
          params(scratch.vectors(Layout(s).size)),
          x(scratch.vectors(kChunk)),
          dt(scratch.vectors(kChunk)),
          y(scratch.vectors(kChunk)),
          h(scratch.vectors(s.states)),
          x_map(maps.vectors(s.height * s.width)),
          y_map(maps.vectors(s.height * s.width)) {}
  };

  // Walks one block's channels in one direction and adds the result to the block's map.
  template <int kStates>
  static MMVMAMBA_NOINLINE void forward_direction(const SS2DForward& p, int64_t sample,
                                                  int64_t block, int64_t k, ForwardRoom& room) {
    const SS2DSizes& s = p.sizes;
    const Layout at(s);
    const int64_t S = s.states, R = s.rank, chunks = ceil_div(s.height * s.width, kChunk);
    const V* params = room.params;
    read_params(s, p.params, block, k, room.params);
    const V skip = params[at.D];
    Chunk& chunk = room.chunk;
    for (int64_t i = 0; i < S; ++i) room.h[i] = V{};
    for (int64_t g = 0; g < chunks; ++g) {
      read_chunk(s, static_cast<const io_t*>(p.proj), sample, k, g * kChunk, chunk);
      if (p.states != nullptr) {
        T* saved = saved_states(p, sample, k, g, block);
        for (int64_t i = 0; i < S; ++i) {
          store_lanes(saved + i * s.channels, room.h[i], lanes_of(s, block));
        }
      }
      for (int64_t t = 0; t < chunk.length; ++t) room.x[t] = room.x_map[chunk.position[t]];
      time_steps<false>(s, chunk, params, params[at.bias], room.dt, nullptr);
      const RowWeights<T> B{chunk.row, R}, C{chunk.row, R + S};
      scan_chunk<kStates>(chunk.length, S, room.x, room.dt, params + at.A, B, C, room.h, room.y);
      add_to_map(chunk, room.y, skip, room.x, k == 0, room.y_map);
    }
  }

  // map[position] = or += value + skip * other.
  static MMVMAMBA_INLINE void add_to_map(const Chunk& chunk, const V* value, V skip, const V* other,
                                         bool first, V* map) {
    if (first) {
      for (int64_t t = 0; t < chunk.length; ++t) {
        map[chunk.position[t]] = value[t] + skip * other[t];
      }
    } else {
      for (int64_t t = 0; t < chunk.length; ++t) {
        V& out = map[chunk.position[t]];
        out = out + (value[t] + skip * other[t]);
      }
    }
  }

  template <int kStates>
  static void forward(const SS2DForward& p, int64_t begin, int64_t end) {
    const SS2DSizes& s = p.sizes;
    Scratch<V> scratch(ForwardRoom::size(s)), maps(2 * s.height * s.width);
    ForwardRoom room(s, scratch, maps);
    for (int64_t index = begin; index < end; ++index) {
      const Item item(s, index);
      for (int64_t b = item.first; b < item.last; ++b) {
        read_map(s, static_cast<const io_t*>(p.x), item.sample, b, room.x_map);
        for (int64_t k = 0; k < s.directions; ++k) {
          forward_direction<kStates>(p, item.sample, b, k, room);
        }
        if (p.y_is_acc) {
          write_map(s, room.y_map, item.sample, b, static_cast<T*>(p.y));
        } else {
          write_map(s, room.y_map, item.sample, b, static_cast<io_t*>(p.y));
        }
      }
    }
  }

  // grad_weight[r + u] += sum_t grad[t] low[t][r + u] for u < N, in two sums by the parity of t.
  template <int N>
  static MMVMAMBA_INLINE void add_products(const Chunk& chunk, const V* grad, int64_t r,
                                           V* grad_weight) {
    V even[N], odd[N];
    MMVMAMBA_EACH even[u] = odd[u] = V{};
    int64_t t = 0;
    for (; t + 2 <= chunk.length; t += 2) {
      MMVMAMBA_EACH even[u] = even[u] + grad[t] * chunk.row[t][r + u];
      MMVMAMBA_EACH odd[u] = odd[u] + grad[t + 1] * chunk.row[t + 1][r + u];
    }
    if (t < chunk.length) {
      MMVMAMBA_EACH even[u] = even[u] + grad[t] * chunk.row[t][r + u];
    }
    MMVMAMBA_EACH grad_weight[r + u] = grad_weight[r + u] + (even[u] + odd[u]);
  }

  // Gradients of the time steps' projection, from grad[t] before softplus.
  //   grad_weight[r] += sum_t grad[t] low[t][r]           lanes over channels
  //   grad_low[t][r] = sum_lanes grad[t] weight[r]        lanes over r: `transposed` holds
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
        V sum[4] = {};
        for (int c = 0; c < kLanes; ++c) {
          const V w = transposed[c * row + v];
          MMVMAMBA_UNROLL for (int u = 0; u < 4; ++u) {
            sum[u] = sum[u] + w * reinterpret_cast<const T*>(grad + t + u)[c];
          }
        }
        MMVMAMBA_UNROLL for (int u = 0; u < 4; ++u) grad_low[(t + u) * row + v] = sum[u];
      }
      for (; t < chunk.length; ++t) {
        V sum{};
        for (int c = 0; c < kLanes; ++c) {
          sum = sum + transposed[c * row + v] * reinterpret_cast<const T*>(grad + t)[c];
        }
        grad_low[t * row + v] = sum;
      }
    }
  }

  struct BackwardRoom {
    Chunk chunk;
    V *params, *grads;                              // [Layout::size]
    V *x, *dt, *slope, *grad_y, *grad_x, *grad_dt;  // [kChunk]
    V* grad_h;                                      // [S]
    V* transposed;                                  // [lanes][rank, padded]
    V* grad_low;                                    // [kChunk][rank, padded]
    ChunkRoom<V> scan;
    T *sum_B, *sum_C;                    // [kChunk][S]
    V *x_map, *grad_y_map, *grad_x_map;  // [L]

    static int64_t size(const SS2DSizes& s) {
      return chunk_vectors(s) + 2 * Layout(s).size + 6 * kChunk + s.states +
             (kLanes + kChunk) * ceil_div(s.rank, kLanes) + ChunkRoom<V>::size(s.states) +
             2 * ceil_div(kChunk * s.states, kLanes);
    }
    BackwardRoom(const SS2DSizes& s, Scratch<V>& scratch, Scratch<V>& maps)
        : chunk(take_chunk(s, scratch)),
          params(scratch.vectors(Layout(s).size)),
          grads(scratch.vectors(Layout(s).size)),
          x(scratch.vectors(kChunk)),
          dt(scratch.vectors(kChunk)),
          slope(scratch.vectors(kChunk)),
          grad_y(scratch.vectors(kChunk)),
          grad_x(scratch.vectors(kChunk)),
          grad_dt(scratch.vectors(kChunk)),
          grad_h(scratch.vectors(s.states)),
          transposed(scratch.vectors(kLanes * ceil_div(s.rank, kLanes))),
          grad_low(scratch.vectors(kChunk * ceil_div(s.rank, kLanes))),
          scan(scratch.room(s.states)),
          sum_B(scratch.template scalars<T>(kChunk * s.states)),
          sum_C(scratch.template scalars<T>(kChunk * s.states)),
          x_map(maps.vectors(s.height * s.width)),
          grad_y_map(maps.vectors(s.height * s.width)),
          grad_x_map(maps.vectors(s.height * s.width)) {}
  };

  // Walks one direction backwards; adds to the block's grad_x map, its parameters' gradients and
  // the group's part of grad_proj, which the group's first block sets.
  template <int kStates>
  static MMVMAMBA_NOINLINE void backward_direction(const SS2DBackward& p, const Item& item,
                                                   int64_t block, int64_t k, BackwardRoom& room) {
    const SS2DSizes& s = p.sizes;
    const Layout at(s);
    const int64_t S = s.states, R = s.rank;
    const V* params = room.params;
    V* grad = room.grads;
    Chunk& chunk = room.chunk;
    read_params(s, p.params, block, k, room.params);
    for (int64_t i = 0; i < at.size; ++i) grad[i] = V{};
    for (int64_t i = 0; i < S; ++i) room.grad_h[i] = V{};
    transpose_weight(s, params, room.transposed);
    ChunkSum<V> sum_bias, sum_D;
    for (int64_t g = ceil_div(s.height * s.width, kChunk) - 1; g >= 0; --g) {
      read_chunk(s, static_cast<const io_t*>(p.proj), item.sample, k, g * kChunk, chunk);
      const T* saved = saved_states(p, item.sample, k, g, block);
      for (int64_t i = 0; i < S; ++i) {
        room.scan.h[i] = load_lanes(saved + i * s.channels, lanes_of(s, block));
      }
      for (int64_t i = 0; i < kChunk * S; ++i) room.scan.grad_B[i] = room.scan.grad_C[i] = V{};
      for (int64_t t = 0; t < chunk.length; ++t) {
        room.x[t] = room.x_map[chunk.position[t]];
        room.grad_y[t] = room.grad_y_map[chunk.position[t]];
      }
      time_steps<true>(s, chunk, params, params[at.bias], room.dt, room.slope);
      const RowWeights<T> B{chunk.row, R}, C{chunk.row, R + S};
      recompute_chunk<kStates>(chunk.length, S, room.x, room.dt, params + at.A, B, room.scan);
      scan_chunk_backward<kStates>(chunk.length, S, room.x, room.dt, params + at.A, B, C,
                                   room.grad_y, room.scan, room.grad_h, grad + at.A, room.grad_x,
                                   room.grad_dt);
      V grad_bias{}, grad_D{};
      for (int64_t t = 0; t < chunk.length; ++t) {
        room.grad_dt[t] = room.grad_dt[t] * room.slope[t];
        grad_bias = grad_bias + room.grad_dt[t];
        grad_D = grad_D + room.grad_y[t] * room.x[t];
      }
      sum_bias.add(g, grad_bias);
      sum_D.add(g, grad_D);
      add_to_map(chunk, room.grad_x, params[at.D], room.grad_y, k == 0, room.grad_x_map);
      time_steps_backward(s, chunk, room.grad_dt, room.transposed, grad, room.grad_low);
      write_grad_proj(p, item, k, block == item.first, room);
    }
    grad[at.bias] = sum_bias.total();
    grad[at.D] = sum_D.total();
    write_grads(s, grad, item.sample, block, k, p.grads);
  }

  // weight[r][channel] -> [channel][r], r padded to whole vectors.
  static void transpose_weight(const SS2DSizes& s, const V* weight, V* transposed) {
    const T* from = reinterpret_cast<const T*>(weight);
    T* to = reinterpret_cast<T*>(transposed);
    for (int c = 0; c < kLanes; ++c) {
      for (int64_t r = 0; r < s.rank; ++r) {
        to[c * ceil_div(s.rank, kLanes) * kLanes + r] = from[r * kLanes + c];
      }
    }
  }

  // A chunk's rows of grad_proj: low-rank time steps, B, C.
  static MMVMAMBA_NOINLINE void write_grad_proj(const SS2DBackward& p, const Item& item, int64_t k,
                                                bool first, BackwardRoom& room) {
    const SS2DSizes& s = p.sizes;
    const int64_t S = s.states, R = s.rank, inner = R + 2 * S;
    const Chunk& chunk = room.chunk;
    sum_lanes(room.scan.grad_B, chunk.length * S, room.sum_B);
    sum_lanes(room.scan.grad_C, chunk.length * S, room.sum_C);
    const T* low = reinterpret_cast<const T*>(room.grad_low);
    T* base =
        static_cast<T*>(p.grad_proj) +
        ((item.group * s.batch + item.sample) * s.height * s.width * s.directions + k) * inner;
    for (int64_t t = 0; t < chunk.length; ++t) {
      T* out = base + chunk.position[t] * s.directions * inner;
      const T* from = low + t * ceil_div(R, kLanes) * kLanes;
      if (first) {
        copy_row(out, from, R);
        copy_row(out + R, room.sum_B + t * S, S);
        copy_row(out + R + S, room.sum_C + t * S, S);
      } else {
        for (int64_t r = 0; r < R; ++r) out[r] += from[r];
        for (int64_t i = 0; i < S; ++i) out[R + i] += room.sum_B[t * S + i];
        for (int64_t i = 0; i < S; ++i) out[R + S + i] += room.sum_C[t * S + i];
      }
    }
  }

  template <int kStates>
  static void backward(const SS2DBackward& p, int64_t begin, int64_t end) {
    const SS2DSizes& s = p.sizes;
    Scratch<V> scratch(BackwardRoom::size(s)), maps(3 * s.height * s.width);
    BackwardRoom room(s, scratch, maps);
    for (int64_t index = begin; index < end; ++index) {
      const Item item(s, index);
      for (int64_t b = item.first; b < item.last; ++b) {
        read_map(s, static_cast<const io_t*>(p.x), item.sample, b, room.x_map);
        if (p.grad_y_is_acc) {
          read_map(s, static_cast<const T*>(p.grad_y), item.sample, b, room.grad_y_map);
        } else {
          read_map(s, static_cast<const io_t*>(p.grad_y), item.sample, b, room.grad_y_map);
        }
        for (int64_t k = 0; k < s.directions; ++k) {
          backward_direction<kStates>(p, item, b, k, room);
        }
        write_map(s, room.grad_x_map, item.sample, b, static_cast<io_t*>(p.grad_x));
      }
    }
  }

  static void forward_any(const SS2DForward& p, int64_t begin, int64_t end) {
    p.sizes.states == 1 ? forward<1>(p, begin, end) : forward<0>(p, begin, end);
  }
  static void backward_any(const SS2DBackward& p, int64_t begin, int64_t end) {
    p.sizes.states == 1 ? backward<1>(p, begin, end) : backward<0>(p, begin, end);
  }
};
