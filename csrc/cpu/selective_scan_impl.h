// selective_scan for one instruction set: lanes over channels. Sequences lie position by position
// in memory, so squares of channels and positions are transposed in registers on the way in and
// out. Included as `vec.h` is.

template <typename io_t>
struct SelectiveScan {
  using T = typename AccOf<io_t>::type;
  using V = typename VecOf<T>::type;
  static constexpr int kLanes = VecOf<T>::size;

  // Offsets in a block's packed parameters, in vectors.
  struct Layout {
    int64_t B, C, bias, D, size;
    explicit Layout(int64_t states)
        : B(states), C(2 * states), bias(3 * states), D(bias + 1), size(D + 1) {}
  };

  struct Item {
    int64_t sample, group, part, first, last, per_group;
    Item(const SelectiveSizes& s, int64_t index) {
      per_group = s.channels / s.groups;
      const int64_t blocks = ceil_div(per_group, kLanes), per_part = ceil_div(blocks, s.parts);
      part = index % s.parts;
      group = index / s.parts % s.groups;
      sample = index / s.parts / s.groups;
      first = std::min(blocks, part * per_part);
      last = std::min(blocks, first + per_part);
    }
    int64_t channel(int64_t block) const { return group * per_group + block * kLanes; }
    int lanes(int64_t block) const {
      return static_cast<int>(std::min<int64_t>(kLanes, per_group - block * kLanes));
    }
    int64_t packed(int64_t block) const { return group * ceil_div(per_group, kLanes) + block; }
  };

  // (channels, positions) in memory -> [positions] vectors of channels.
  static void read(const Sequences& from, int64_t sample, int64_t channel, int lanes, int64_t start,
                   int64_t length, V* to) {
    const io_t* base = static_cast<const io_t*>(from.data) + sample * from.batch_stride +
                       channel * from.channel_stride + start;
    load_columns(base, from.channel_stride, lanes, length, to);
  }
  static void write(void* to, const SelectiveSizes& s, int64_t sample, int64_t channel, int lanes,
                    int64_t start, int64_t length, const V* from) {
    io_t* base = static_cast<io_t*>(to) + (sample * s.channels + channel) * s.length + start;
    store_columns(from, s.length, lanes, length, base);
  }

  // B or C of a chunk as scalars [t][s]; nothing where they are constant.
  static void read_weights(const GroupWeights& from, int64_t sample, int64_t group, int64_t states,
                           int64_t start, int64_t length, T* to) {
    if (from.data == nullptr) return;
    const io_t* base = static_cast<const io_t*>(from.data) + sample * from.batch_stride +
                       group * from.group_stride + start;
    for (int64_t i = 0; i < states; ++i) {
      for (int64_t t = 0; t < length; ++t)
        to[t * states + i] = to_acc(base[i * from.state_stride + t]);
    }
  }

  // dt = delta + bias, through softplus where asked for; the slope is 1 where it is not.
  template <bool kWithSlope>
  static MMVMAMBA_INLINE void time_steps(bool with_softplus, int64_t length, V bias, V* dt,
                                         V* slope) {
    for (int64_t t = 0; t < length; ++t) {
      dt[t] = dt[t] + bias;
      if (kWithSlope) slope[t] = broadcast<V>(T(1));
    }
    if (!with_softplus) return;
    for_each_block(length, [&](auto block, int64_t t) MMVMAMBA_INLINE_LAMBDA {
      constexpr int N = decltype(block)::value;
      V sum[N];
      MMVMAMBA_EACH sum[u] = dt[t + u];
      softplus<N, kWithSlope>(sum, dt + t, kWithSlope ? slope + t : nullptr);
    });
  }

  static void pack(const SelectiveSizes& s, const void* A, const void* B, const void* C,
                   const void* bias, const void* D, void* params) {
    const Layout at(s.states);
    const int64_t per_group = s.channels / s.groups, blocks = ceil_div(per_group, kLanes);
    for (int64_t c = 0; c < s.channels; ++c) {
      const int64_t group = c / per_group, place = c % per_group;
      T* out = static_cast<T*>(params) + (group * blocks + place / kLanes) * at.size * kLanes +
               place % kLanes;
      for (int64_t i = 0; i < s.states; ++i) {
        const int64_t from = c * s.states + i;
        out[i * kLanes] = static_cast<const T*>(A)[from];
        if (B != nullptr) out[(at.B + i) * kLanes] = static_cast<const T*>(B)[from];
        if (C != nullptr) out[(at.C + i) * kLanes] = static_cast<const T*>(C)[from];
      }
      if (bias != nullptr) out[at.bias * kLanes] = static_cast<const T*>(bias)[c];
      if (D != nullptr) out[at.D * kLanes] = static_cast<const T*>(D)[c];
    }
  }

  // The kernel for how B and C are given: shared, or constant for each channel.
  template <int kStates, typename WB, typename WC>
  static void forward(const SelectiveForward& p, int64_t begin, int64_t end) {
    const SelectiveSizes& s = p.sizes;
    const int64_t S = s.states, chunks = ceil_div(s.length, kChunk);
    const Layout at(S);
    T* states = static_cast<T*>(p.states);
    Scratch<V> scratch(4 * kChunk + S + 2 * ceil_div(kChunk * S, kLanes));
    V* u = scratch.vectors(kChunk);
    V* dt = scratch.vectors(kChunk);
    V* y = scratch.vectors(kChunk);
    V* z = scratch.vectors(kChunk);
    V* h = scratch.vectors(S);
    T* B = scratch.template scalars<T>(kChunk * S);
    T* C = scratch.template scalars<T>(kChunk * S);

    for (int64_t index = begin; index < end; ++index) {
      const Item item(s, index);
      for (int64_t b = item.first; b < item.last; ++b) {
        const int lanes = item.lanes(b);
        const int64_t channel = item.channel(b);
        const V* block = static_cast<const V*>(p.params) + item.packed(b) * at.size;
        for (int64_t i = 0; i < S; ++i) h[i] = V{};
        for (int64_t g = 0; g < chunks; ++g) {
          const int64_t start = g * kChunk, length = std::min(kChunk, s.length - start);
          if (states != nullptr) {
            T* saved = states + (item.sample * chunks + g) * S * s.channels + channel;
            for (int64_t i = 0; i < S; ++i) store_lanes(saved + i * s.channels, h[i], lanes);
          }
          read(p.u, item.sample, channel, lanes, start, length, u);
          read(p.delta, item.sample, channel, lanes, start, length, dt);
          read_weights(p.B, item.sample, item.group, S, start, length, B);
          read_weights(p.C, item.sample, item.group, S, start, length, C);
          time_steps<false>(s.softplus, length, block[at.bias], dt, nullptr);
          scan_chunk<kStates>(length, S, u, dt, block, weights<WB>(B, block + at.B),
                              weights<WC>(C, block + at.C), h, y);
          for (int64_t t = 0; t < length; ++t) y[t] = y[t] + block[at.D] * u[t];
          if (p.z.data != nullptr) {
            read(p.z, item.sample, channel, lanes, start, length, z);
            for (int64_t t = 0; t < length; ++t) y[t] = y[t] * (z[t] * sigmoid(z[t]));
          }
          write(p.out, s, item.sample, channel, lanes, start, length, y);
        }
        T* last = static_cast<T*>(p.last_state) + (item.sample * s.channels + channel) * S;
        for (int c = 0; c < lanes; ++c) {
          for (int64_t i = 0; i < S; ++i) last[c * S + i] = h[i][c];
        }
      }
    }
  }

  template <typename W>
  static MMVMAMBA_INLINE W weights(const T* shared, const V* channel) {
    if constexpr (std::is_same<W, SharedWeights<T>>::value) {
      return W{shared};
    } else {
      return W{channel};
    }
  }

  // Adds a block's gradient of shared weights [t][s], summed over lanes, to [s][length].
  static void write_weights(const V* from, const SelectiveSizes& s, const Item& item, int64_t start,
                            int64_t length, T* sums, void* to) {
    if (to == nullptr) return;
    sum_lanes(from, length * s.states, sums);
    T* base = static_cast<T*>(to) +
              ((item.part * s.batch + item.sample) * s.groups + item.group) * s.states * s.length +
              start;
    for (int64_t i = 0; i < s.states; ++i) {
      for (int64_t t = 0; t < length; ++t) base[i * s.length + t] += sums[t * s.states + i];
    }
  }

  // The gradient of the gate, from the output before it; turns gy into that output's gradient.
  template <typename WC>
  static void gate_backward(int64_t length, int64_t S, const V* u, V skip, WC C,
                            const ChunkRoom<V>& room, const V* z, V* gy, V* gz) {
    for (int64_t t = 0; t < length; ++t) {
      V sum[kSideBySide] = {};  // as scan_chunk adds them
      for_each_block(S, [&](auto block, int64_t first) {
        MMVMAMBA_UNROLL for (int v = 0; v < decltype(block)::value; ++v) {
          const int64_t i = first + v;
          sum[v] = sum[v] + room.h[(t + 1) * S + i] * C.at(t, i, S);
        }
      });
      const V y = skip * u[t] + add_up(sum), gate = sigmoid(z[t]);
      gz[t] = gy[t] * y * gate * (T(1) + z[t] * (T(1) - gate));
      gy[t] = gy[t] * (z[t] * gate);
    }
  }

  template <int kStates, typename WB, typename WC>
  static void backward(const SelectiveBackward& p, int64_t begin, int64_t end) {
    const SelectiveSizes& s = p.sizes;
    const int64_t S = s.states, chunks = ceil_div(s.length, kChunk);
    const Layout at(S);
    Scratch<V> scratch(9 * kChunk + S + ChunkRoom<V>::size(S) + 3 * ceil_div(kChunk * S, kLanes));
    V* u = scratch.vectors(kChunk);
    V* dt = scratch.vectors(kChunk);
    V* slope = scratch.vectors(kChunk);
    V* z = scratch.vectors(kChunk);
    V* gy = scratch.vectors(kChunk);
    V* gz = scratch.vectors(kChunk);
    V* gu = scratch.vectors(kChunk);
    V* gdt = scratch.vectors(kChunk);
    V* grad_h = scratch.vectors(S);
    const ChunkRoom<V> room = scratch.room(S);
    T* B = scratch.template scalars<T>(kChunk * S);
    T* C = scratch.template scalars<T>(kChunk * S);
    T* sums = scratch.template scalars<T>(kChunk * S);
    const bool shared_B = p.grad_B != nullptr, shared_C = p.grad_C != nullptr;

    for (int64_t index = begin; index < end; ++index) {
      const Item item(s, index);
      for (int64_t b = item.first; b < item.last; ++b) {
        const int lanes = item.lanes(b);
        const int64_t channel = item.channel(b);
        const V* block = static_cast<const V*>(p.params) + item.packed(b) * at.size;
        const int64_t blocks = s.groups * ceil_div(item.per_group, kLanes);
        V* grad =
            static_cast<V*>(p.grad_params) + (item.sample * blocks + item.packed(b)) * at.size;
        for (int64_t i = 0; i < at.size; ++i) grad[i] = V{};
        for (int64_t i = 0; i < S; ++i) grad_h[i] = V{};
        ChunkSum<V> sum_bias, sum_D;
        for (int64_t g = chunks - 1; g >= 0; --g) {
          const int64_t start = g * kChunk, length = std::min(kChunk, s.length - start);
          const T* saved = static_cast<const T*>(p.states) +
                           (item.sample * chunks + g) * S * s.channels + channel;
          for (int64_t i = 0; i < S; ++i) room.h[i] = load_lanes(saved + i * s.channels, lanes);
          for (int64_t i = 0; i < kChunk * S; ++i) room.grad_B[i] = room.grad_C[i] = V{};
          read(p.u, item.sample, channel, lanes, start, length, u);
          read(p.delta, item.sample, channel, lanes, start, length, dt);
          read(p.grad_out, item.sample, channel, lanes, start, length, gy);
          read_weights(p.B, item.sample, item.group, S, start, length, B);
          read_weights(p.C, item.sample, item.group, S, start, length, C);
          time_steps<true>(s.softplus, length, block[at.bias], dt, slope);
          const WB weights_B = weights<WB>(B, block + at.B);
          const WC weights_C = weights<WC>(C, block + at.C);
          recompute_chunk<kStates>(length, S, u, dt, block, weights_B, room);
          if (p.z.data != nullptr) {
            read(p.z, item.sample, channel, lanes, start, length, z);
            gate_backward(length, S, u, block[at.D], weights_C, room, z, gy, gz);
            write(p.grad_z, s, item.sample, channel, lanes, start, length, gz);
          }
          scan_chunk_backward<kStates>(length, S, u, dt, block, weights_B, weights_C, gy, room,
                                       grad_h, grad, gu, gdt);
          V grad_bias{}, grad_D{};
          for (int64_t t = 0; t < length; ++t) {
            gdt[t] = gdt[t] * slope[t];
            grad_bias = grad_bias + gdt[t];
            grad_D = grad_D + gy[t] * u[t];
            gu[t] = gu[t] + block[at.D] * gy[t];
          }
          sum_bias.add(g, grad_bias);
          sum_D.add(g, grad_D);
          write(p.grad_u, s, item.sample, channel, lanes, start, length, gu);
          write(p.grad_delta, s, item.sample, channel, lanes, start, length, gdt);
          write_weights(room.grad_B, s, item, start, length, sums, p.grad_B);
          write_weights(room.grad_C, s, item, start, length, sums, p.grad_C);
          // Constant weights have one sum for each state; over chunks it is a sum of sums.
          for (int64_t i = 0; i < S && !shared_B; ++i) {
            grad[at.B + i] = grad[at.B + i] + room.grad_B[i];
          }
          for (int64_t i = 0; i < S && !shared_C; ++i) {
            grad[at.C + i] = grad[at.C + i] + room.grad_C[i];
          }
        }
        grad[at.bias] = sum_bias.total();
        grad[at.D] = sum_D.total();
      }
    }
  }

  template <int kStates, typename Args, typename F>
  static void choose(const Args& p, F run) {
    using Shared = SharedWeights<T>;
    using Channel = ChannelWeights<V>;
    if (p.B.data != nullptr && p.C.data != nullptr) {
      run(std::integral_constant<int, kStates>{}, Shared{}, Shared{});
    } else if (p.B.data != nullptr) {
      run(std::integral_constant<int, kStates>{}, Shared{}, Channel{});
    } else if (p.C.data != nullptr) {
      run(std::integral_constant<int, kStates>{}, Channel{}, Shared{});
    } else {
      run(std::integral_constant<int, kStates>{}, Channel{}, Channel{});
    }
  }
  static void forward_any(const SelectiveForward& p, int64_t begin, int64_t end) {
    const auto run = [&](auto states, auto B, auto C) {
      forward<decltype(states)::value, decltype(B), decltype(C)>(p, begin, end);
    };
    p.sizes.states == 1 ? choose<1>(p, run) : choose<0>(p, run);
  }
  static void backward_any(const SelectiveBackward& p, int64_t begin, int64_t end) {
    const auto run = [&](auto states, auto B, auto C) {
      backward<decltype(states)::value, decltype(B), decltype(C)>(p, begin, end);
    };
    p.sizes.states == 1 ? choose<1>(p, run) : choose<0>(p, run);
  }
};
