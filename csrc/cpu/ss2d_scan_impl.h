// ss2d_scan for one instruction set: sample by sample, block of channels by block, axis by axis,
// direction by direction, chunk by chunk, with lanes over channels. Included as `vec.h` is.
//
// The positions of a map are numbered along the rows for the directions that walk rows, and along
// the columns for the others. Everything that a walk reads or writes lies in the order of its axis,
// so that each direction goes through memory from one end to the other.

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

  // The numbers of the positions that a direction visits one after the other.
  struct Path {
    int64_t first, step;
    Path(const SS2DSizes& s, int64_t k)
        : first(is_reversed(s.orders[k]) ? s.height * s.width - 1 : 0),
          step(is_reversed(s.orders[k]) ? -1 : 1) {}
    int64_t at(int64_t t) const { return first + t * step; }
  };

  // f(image position, number along the columns), in the order of the image.
  template <typename F>
  static MMVMAMBA_INLINE void for_each_position(const SS2DSizes& s, F f) {
    for (int64_t h = 0; h < s.height; ++h) {
      for (int64_t w = 0; w < s.width; ++w) f(h * s.width + w, w * s.height + h);
    }
  }

  // The rows of `proj` (low-rank time steps, B, C) of the directions [begin, end) of all samples,
  // each in the order of its axis and in the type of the sums.
  static void pack(const SS2DSizes& s, const void* proj, void* packed, int64_t begin, int64_t end) {
    const int64_t L = s.height * s.width, inner = s.rank + 2 * s.states;
    for (int64_t index = begin; index < end; ++index) {
      const int64_t k = index % s.directions;
      const io_t* from =
          static_cast<const io_t*>(proj) + (index / s.directions * L * s.directions + k) * inner;
      T* to = static_cast<T*>(packed) + index * L * inner;
      const bool columns = along_columns(s.orders[k]);
      for_each_position(s, [&](int64_t l, int64_t column) {
        const io_t* source = from + l * s.directions * inner;
        T* row = to + (columns ? column : l) * inner;
        for (int64_t i = 0; i < inner; ++i) row[i] = to_acc(source[i]);
      });
    }
  }

  // The inverse of pack.
  static void unpack(const SS2DSizes& s, const void* packed, void* proj, int64_t begin,
                     int64_t end) {
    const int64_t L = s.height * s.width, inner = s.rank + 2 * s.states;
    for (int64_t index = begin; index < end; ++index) {
      const int64_t k = index % s.directions;
      const T* from = static_cast<const T*>(packed) + index * L * inner;
      io_t* to = static_cast<io_t*>(proj) + (index / s.directions * L * s.directions + k) * inner;
      const bool columns = along_columns(s.orders[k]);
      for_each_position(s, [&](int64_t l, int64_t column) {
        const T* row = from + (columns ? column : l) * inner;
        io_t* out = to + l * s.directions * inner;
        for (int64_t i = 0; i < inner; ++i) set(out[i], row[i]);
      });
    }
  }

  // sum[u] += weight rows[u * stride + r] for u < N.
  template <int N>
  static MMVMAMBA_INLINE void add_scaled(V weight, const T* rows, int64_t stride, int64_t r,
                                         V* sum) {
    MMVMAMBA_EACH sum[u] = sum[u] + weight * rows[u * stride + r];
  }

  // dt[u] = softplus(bias + sum_r rows[u * stride + r] weight[r]); with its slope where asked for.
  template <int N, bool kWithSlope>
  static MMVMAMBA_INLINE void time_steps(int64_t rank, const T* rows, int64_t stride,
                                         const V* weight, V bias, V* dt, V* slope) {
    // Partial sums lose fewer digits than one. As arrays of their own they stay in registers.
    V sum[N], second[N];
    MMVMAMBA_EACH sum[u] = second[u] = V{};
    int64_t r = 0;
    for (; r + 2 <= rank; r += 2) {
      add_scaled<N>(weight[r], rows, stride, r, sum);
      add_scaled<N>(weight[r + 1], rows, stride, r + 1, second);
    }
    if (r < rank) add_scaled<N>(weight[r], rows, stride, r, sum);
    MMVMAMBA_EACH sum[u] = sum[u] + second[u];
    // The bias last: it is often the largest term, and every addition to it would round.
    MMVMAMBA_EACH sum[u] = sum[u] + bias;
    softplus<N, kWithSlope>(sum, dt, slope);
  }

  // One block's parameters in one direction: dt weights, A, dt bias, D, channels in lanes.
  static MMVMAMBA_INLINE void read_params(const SS2DSizes& s, const SS2DParams& from, int64_t block,
                                          int64_t k, V* to) {
    const Layout at(s);
    const int64_t row = k * s.channels + block * kLanes;
    const int lanes = lanes_of(s, block);
    load_columns(static_cast<const T*>(from.dt_weight) + row * s.rank, s.rank, lanes, s.rank, to);
    const T* A = static_cast<const T*>(from.A) + row * s.states;
    if (s.states == 1) {
      to[at.A] = load_lanes(A, lanes);
    } else {
      load_columns(A, s.states, lanes, s.states, to + at.A);
    }
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

  // One block's channels of a map (H, W, C), copied out so that they lie densely, in the order of
  // the image or along the columns.
  template <typename from_t>
  static MMVMAMBA_NOINLINE void read_map(const SS2DSizes& s, const from_t* from, int64_t sample,
                                         int64_t block, bool columns, V* to) {
    const int lanes = lanes_of(s, block);
    from += sample * s.height * s.width * s.channels + block * kLanes;
    for_each_position(s, [&](int64_t l, int64_t column) {
      to[columns ? column : l] = load_lanes(from + l * s.channels, lanes);
    });
  }
  // Writes the sum of the maps of both axes, where null is no map.
  template <typename to_t>
  static MMVMAMBA_NOINLINE void write_map(const SS2DSizes& s, const V* rows, const V* columns,
                                          int64_t sample, int64_t block, to_t* to) {
    const int lanes = lanes_of(s, block);
    to += sample * s.height * s.width * s.channels + block * kLanes;
    for_each_position(s, [&](int64_t l, int64_t column) {
      const V value = columns == nullptr ? rows[l]
                      : rows == nullptr  ? columns[column]
                                         : rows[l] + columns[column];
      store_lanes(to + l * s.channels, value, lanes);
    });
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

  // The rows of one direction.
  static const T* packed_rows(const SS2DSizes& s, const void* packed, int64_t sample, int64_t k) {
    const int64_t size = s.height * s.width * (s.rank + 2 * s.states);
    return static_cast<const T*>(packed) + (sample * s.directions + k) * size;
  }

  struct ForwardRoom {
    V* params;      // [Layout::size]
    V *x, *dt, *y;  // [kChunk]
    V* h;           // [S]
    V* x_map;       // [L], of the axis at hand
    V* y_maps[2];   // [L], of rows and of columns
    static int64_t size(const SS2DSizes& s) { return Layout(s).size + 3 * kChunk + s.states; }
    ForwardRoom(const SS2DSizes& s, Scratch<V>& scratch, Scratch<V>& maps)
        : params(scratch.vectors(Layout(s).size)),
          x(scratch.vectors(kChunk)),
          dt(scratch.vectors(kChunk)),
          y(scratch.vectors(kChunk)),
          h(scratch.vectors(s.states)),
          x_map(maps.vectors(s.height * s.width)),
          y_maps{maps.vectors(s.height * s.width), maps.vectors(s.height * s.width)} {}
  };

  // Sets y or adds to it.
  template <bool kFirst>
  static MMVMAMBA_INLINE void put(V& y, V value) {
    if constexpr (kFirst) {
      y = value;
    } else {
      y = y + value;
    }
  }

  // A chunk with one state in one pass, in which nothing but the map goes to memory.
  template <bool kFirst>
  static MMVMAMBA_NOINLINE void scan_map(const SS2DSizes& s, int64_t length, const T* rows,
                                         int64_t stride, const V* params, const V* x, V* y,
                                         int64_t step, V* h) {
    const Layout at(s);
    const V rate = params[at.A], skip = params[at.D], bias = params[at.bias];
    V state = h[0];
    for_each_wide_block(length, [&](auto block, int64_t t) MMVMAMBA_INLINE_LAMBDA {
      constexpr int N = decltype(block)::value;
      const T* row = rows + t * stride;
      V dt[N], decay[N];
      time_steps<N, false>(s.rank, row, stride, params, bias, dt, nullptr);
      MMVMAMBA_EACH decay[u] = dt[u] * rate;
      expv<N>(decay, decay);
      MMVMAMBA_EACH {
        const V in = x[(t + u) * step];
        const T *B = row + u * stride + s.rank, *C = B + 1;
        state = decay[u] * state + (dt[u] * in) * *B;
        put<kFirst>(y[(t + u) * step], state * *C + skip * in);
      }
    });
    h[0] = state;
  }

  // A chunk with any number of states.
  template <bool kFirst>
  static MMVMAMBA_NOINLINE void scan_map_any(const SS2DSizes& s, int64_t length, const T* rows,
                                             int64_t stride, const V* params, const V* x, V* y,
                                             int64_t step, ForwardRoom& room) {
    const Layout at(s);
    for_each_block(length, [&](auto block, int64_t t) {
      constexpr int N = decltype(block)::value;
      time_steps<N, false>(s.rank, rows + t * stride, stride, params, params[at.bias], room.dt + t,
                           nullptr);
      MMVMAMBA_EACH room.x[t + u] = x[(t + u) * step];
    });
    const RowWeights<T> B{rows + s.rank, stride}, C{rows + s.rank + s.states, stride};
    scan_chunk<0>(length, s.states, room.x, room.dt, params + at.A, B, C, room.h, room.y);
    for (int64_t t = 0; t < length; ++t) {
      put<kFirst>(y[t * step], room.y[t] + params[at.D] * room.x[t]);
    }
  }

  // Walks one block's channels in one direction and adds the result to the map of its axis.
  template <int kStates, bool kFirst>
  static MMVMAMBA_INLINE void forward_direction(const SS2DForward& p, int64_t sample, int64_t block,
                                                int64_t k, V* y_map, ForwardRoom& room) {
    const SS2DSizes& s = p.sizes;
    const int64_t L = s.height * s.width, inner = s.rank + 2 * s.states;
    read_params(s, p.params, block, k, room.params);
    for (int64_t i = 0; i < s.states; ++i) room.h[i] = V{};
    const Path path(s, k);
    const T* all = packed_rows(s, p.rows, sample, k);
    const int64_t chunk = kStates == 1 && p.states == nullptr ? L : kChunk;
    for (int64_t start = 0; start < L; start += chunk) {
      if (p.states != nullptr) {
        T* saved = saved_states(p, sample, k, start / kChunk, block);
        for (int64_t i = 0; i < s.states; ++i) {
          store_lanes(saved + i * s.channels, room.h[i], lanes_of(s, block));
        }
      }
      const int64_t length = std::min(chunk, L - start), at = path.at(start);
      const T* rows = all + at * inner;
      const V* x = room.x_map + at;
      V* y = y_map + at;
      if constexpr (kStates == 1) {
        scan_map<kFirst>(s, length, rows, path.step * inner, room.params, x, y, path.step, room.h);
      } else {
        scan_map_any<kFirst>(s, length, rows, path.step * inner, room.params, x, y, path.step,
                             room);
      }
    }
  }

  // Calls f(axis) for the axes that have directions, rows (0) before columns (1).
  template <typename F>
  static MMVMAMBA_INLINE void for_each_axis(const SS2DSizes& s, F f) {
    for (int axis = 0; axis < 2; ++axis) {
      if (has_axis(s, axis)) f(axis);
    }
  }
  static bool has_axis(const SS2DSizes& s, int axis) {
    for (int64_t k = 0; k < s.directions; ++k) {
      if (along_columns(s.orders[k]) == (axis == 1)) return true;
    }
    return false;
  }

  template <int kStates>
  static void forward(const SS2DForward& p, int64_t begin, int64_t end) {
    const SS2DSizes& s = p.sizes;
    Scratch<V> scratch(ForwardRoom::size(s)), maps(3 * s.height * s.width);
    ForwardRoom room(s, scratch, maps);
    for (int64_t index = begin; index < end; ++index) {
      const Item item(s, index);
      for (int64_t b = item.first; b < item.last; ++b) {
        for_each_axis(s, [&](int axis) {
          read_map(s, static_cast<const io_t*>(p.x), item.sample, b, axis == 1, room.x_map);
          bool first = true;
          for (int64_t k = 0; k < s.directions; ++k) {
            if (along_columns(s.orders[k]) != (axis == 1)) continue;
            if (first) {
              forward_direction<kStates, true>(p, item.sample, b, k, room.y_maps[axis], room);
            } else {
              forward_direction<kStates, false>(p, item.sample, b, k, room.y_maps[axis], room);
            }
            first = false;
          }
        });
        const V* rows = has_axis(s, 0) ? room.y_maps[0] : nullptr;
        const V* columns = has_axis(s, 1) ? room.y_maps[1] : nullptr;
        if (p.y_is_acc) {
          write_map(s, rows, columns, item.sample, b, static_cast<T*>(p.y));
        } else {
          write_map(s, rows, columns, item.sample, b, static_cast<io_t*>(p.y));
        }
      }
    }
  }

  // grad_weight[r + u] += sum_t grad[t] low[t][r + u] for u < N, in two sums by the parity of t.
  template <int N>
  static MMVMAMBA_INLINE void add_products(int64_t length, const T* rows, int64_t stride,
                                           const V* grad, int64_t r, V* grad_weight) {
    V even[N], odd[N];
    MMVMAMBA_EACH even[u] = odd[u] = V{};
    int64_t t = 0;
    for (; t + 2 <= length; t += 2) {
      MMVMAMBA_EACH even[u] = even[u] + grad[t] * rows[t * stride + r + u];
      MMVMAMBA_EACH odd[u] = odd[u] + grad[t + 1] * rows[(t + 1) * stride + r + u];
    }
    if (t < length) {
      MMVMAMBA_EACH even[u] = even[u] + grad[t] * rows[t * stride + r + u];
    }
    MMVMAMBA_EACH grad_weight[r + u] = grad_weight[r + u] + (even[u] + odd[u]);
  }

  // Gradients of the time steps' projection, from grad[t] before softplus.
  //   grad_weight[r] += sum_t grad[t] low[t][r]           lanes over channels
  //   grad_low[t][r] = sum_lanes grad[t] weight[r]        lanes over r: `transposed` holds
  //                                                       weight[r] by channel, r padded
  static MMVMAMBA_INLINE void time_steps_backward(int64_t R, int64_t length, const T* rows,
                                                  int64_t stride, const V* grad,
                                                  const V* transposed, V* grad_weight,
                                                  V* grad_low) {
    const int64_t row = ceil_div(R, kLanes);
    constexpr int kRows = 4;  // of low for each load of a gradient
    int64_t r = 0;
    for (; r + kRows <= R; r += kRows)
      add_products<kRows>(length, rows, stride, grad, r, grad_weight);
    for (; r < R; ++r) add_products<1>(length, rows, stride, grad, r, grad_weight);
    for (int64_t v = 0; v < row; ++v) {
      for_each_wide_block(length, [&](auto block, int64_t t) {
        constexpr int N = decltype(block)::value;
        V sum[N];
        MMVMAMBA_EACH sum[u] = V{};
        for (int c = 0; c < kLanes; ++c) {
          const V w = transposed[c * row + v];
          MMVMAMBA_EACH sum[u] = sum[u] + w * reinterpret_cast<const T*>(grad + t + u)[c];
        }
        MMVMAMBA_EACH grad_low[(t + u) * row + v] = sum[u];
      });
    }
  }

  struct BackwardRoom {
    V *params, *grads;                              // [Layout::size]
    V *x, *dt, *slope, *grad_y, *grad_x, *grad_dt;  // [kChunk]
    V* grad_h;                                      // [S]
    V* transposed;                                  // [lanes][rank, padded]
    V* grad_low;                                    // [kChunk][rank, padded]
    ChunkRoom<V> scan;
    T *sum_B, *sum_C;       // [kChunk][S]
    V *x_map, *grad_y_map;  // [L], of the axis at hand
    V* grad_x_maps[2];      // [L], of rows and of columns

    static int64_t size(const SS2DSizes& s) {
      return 2 * Layout(s).size + 6 * kChunk + s.states +
             (kLanes + kChunk) * ceil_div(s.rank, kLanes) + ChunkRoom<V>::size(s.states) +
             2 * ceil_div(kChunk * s.states, kLanes);
    }
    BackwardRoom(const SS2DSizes& s, Scratch<V>& scratch, Scratch<V>& maps)
        : params(scratch.vectors(Layout(s).size)),
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
          grad_x_maps{maps.vectors(s.height * s.width), maps.vectors(s.height * s.width)} {}
  };

  // Walks one direction backwards; adds to the grad_x map of its axis, the parameters' gradients
  // and the group's part of the rows' gradients, which the group's first block sets.
  template <int kStates>
  static MMVMAMBA_NOINLINE void backward_direction(const SS2DBackward& p, const Item& item,
                                                   int64_t block, int64_t k, bool first,
                                                   V* grad_x_map, BackwardRoom& room) {
    const SS2DSizes& s = p.sizes;
    const Layout at(s);
    const int64_t S = s.states, R = s.rank, L = s.height * s.width, inner = R + 2 * S;
    const V* params = room.params;
    V* grad = room.grads;
    read_params(s, p.params, block, k, room.params);
    for (int64_t i = 0; i < at.size; ++i) grad[i] = V{};
    for (int64_t i = 0; i < S; ++i) room.grad_h[i] = V{};
    transpose_weight(s, params, room.transposed);
    const Path path(s, k);
    const int64_t step = path.step, stride = step * inner;
    const T* all = packed_rows(s, p.rows, item.sample, k);
    ChunkSum<V> sum_bias, sum_D;
    for (int64_t g = ceil_div(L, kChunk) - 1; g >= 0; --g) {
      const int64_t length = std::min(kChunk, L - g * kChunk), begin = path.at(g * kChunk);
      const T* rows = all + begin * inner;
      const T* saved = saved_states(p, item.sample, k, g, block);
      for (int64_t i = 0; i < S; ++i) {
        room.scan.h[i] = load_lanes(saved + i * s.channels, lanes_of(s, block));
      }
      for (int64_t i = 0; i < kChunk * S; ++i) room.scan.grad_B[i] = room.scan.grad_C[i] = V{};
      for_each_block(length, [&](auto count, int64_t t) {
        constexpr int N = decltype(count)::value;
        time_steps<N, true>(R, rows + t * stride, stride, params, params[at.bias], room.dt + t,
                            room.slope + t);
        MMVMAMBA_EACH room.x[t + u] = room.x_map[begin + (t + u) * step];
        MMVMAMBA_EACH room.grad_y[t + u] = room.grad_y_map[begin + (t + u) * step];
      });
      const RowWeights<T> B{rows + R, stride}, C{rows + R + S, stride};
      recompute_chunk<kStates>(length, S, room.x, room.dt, params + at.A, B, room.scan);
      scan_chunk_backward<kStates>(length, S, room.x, room.dt, params + at.A, B, C, room.grad_y,
                                   room.scan, room.grad_h, grad + at.A, room.grad_x, room.grad_dt);
      V grad_bias{}, grad_D{};
      for (int64_t t = 0; t < length; ++t) {
        room.grad_dt[t] = room.grad_dt[t] * room.slope[t];
        grad_bias = grad_bias + room.grad_dt[t];
        grad_D = grad_D + room.grad_y[t] * room.x[t];
        V& grad_x = grad_x_map[begin + t * step];
        const V value = room.grad_x[t] + params[at.D] * room.grad_y[t];
        grad_x = first ? value : grad_x + value;
      }
      sum_bias.add(g, grad_bias);
      sum_D.add(g, grad_D);
      time_steps_backward(R, length, rows, stride, room.grad_dt, room.transposed, grad,
                          room.grad_low);
      write_grad_rows(p, item, k, begin, step, length, block == item.first, room);
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

  static MMVMAMBA_INLINE void add_row(T* to, const T* from, int64_t count) {
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) store(to + i, load(to + i) + load(from + i));
    for (; i < count; ++i) to[i] += from[i];
  }

  // The gradients of a chunk's rows: low-rank time steps, B, C.
  static MMVMAMBA_NOINLINE void write_grad_rows(const SS2DBackward& p, const Item& item, int64_t k,
                                                int64_t begin, int64_t step, int64_t length,
                                                bool first, BackwardRoom& room) {
    const SS2DSizes& s = p.sizes;
    const int64_t S = s.states, R = s.rank, inner = R + 2 * S;
    sum_lanes(room.scan.grad_B, length * S, room.sum_B);
    sum_lanes(room.scan.grad_C, length * S, room.sum_C);
    const T* low = reinterpret_cast<const T*>(room.grad_low);
    T* base =
        static_cast<T*>(p.grad_rows) +
        ((item.group * s.batch + item.sample) * s.directions + k) * s.height * s.width * inner;
    for (int64_t t = 0; t < length; ++t) {
      T* out = base + (begin + t * step) * inner;
      const T* from = low + t * ceil_div(R, kLanes) * kLanes;
      if (first) {
        copy_row(out, from, R);
        copy_row(out + R, room.sum_B + t * S, S);
        copy_row(out + R + S, room.sum_C + t * S, S);
      } else {
        add_row(out, from, R);
        add_row(out + R, room.sum_B + t * S, S);
        add_row(out + R + S, room.sum_C + t * S, S);
      }
    }
  }

  template <int kStates>
  static void backward(const SS2DBackward& p, int64_t begin, int64_t end) {
    const SS2DSizes& s = p.sizes;
    Scratch<V> scratch(BackwardRoom::size(s)), maps(4 * s.height * s.width);
    BackwardRoom room(s, scratch, maps);
    for (int64_t index = begin; index < end; ++index) {
      const Item item(s, index);
      for (int64_t b = item.first; b < item.last; ++b) {
        for_each_axis(s, [&](int axis) {
          const bool columns = axis == 1;
          read_map(s, static_cast<const io_t*>(p.x), item.sample, b, columns, room.x_map);
          if (p.grad_y_is_acc) {
            read_map(s, static_cast<const T*>(p.grad_y), item.sample, b, columns, room.grad_y_map);
          } else {
            read_map(s, static_cast<const io_t*>(p.grad_y), item.sample, b, columns,
                     room.grad_y_map);
          }
          bool first = true;
          for (int64_t k = 0; k < s.directions; ++k) {
            if (along_columns(s.orders[k]) != columns) continue;
            backward_direction<kStates>(p, item, b, k, first, room.grad_x_maps[axis], room);
            first = false;
          }
        });
        write_map(s, has_axis(s, 0) ? room.grad_x_maps[0] : nullptr,
                  has_axis(s, 1) ? room.grad_x_maps[1] : nullptr, item.sample, b,
                  static_cast<io_t*>(p.grad_x));
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
