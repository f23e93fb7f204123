// The scan of one chunk of at most kChunk positions for one vector of channels, forward and
// backward: the part that ss2d_scan and selective_scan share. Included as `vec.h` is.
//
// States S are 1 at compile time (kStates = 1) or any number (kStates = 0). Vectors of channels are
// indexed [t] or [t][s].

// B or C of a chunk: a number for each position and state, which all channels share ...
template <typename T>
struct SharedWeights {
  const T* values;  // [kChunk][S]
  MMVMAMBA_INLINE T at(int64_t t, int64_t s, int64_t S) const { return values[t * S + s]; }
  static MMVMAMBA_INLINE int64_t index(int64_t t, int64_t s, int64_t S) { return t * S + s; }
};
// ... as it stands in the rows of a wider table, one row for each position ...
template <typename T>
struct RowWeights {
  const T* values;
  int64_t stride;  // from row to row
  MMVMAMBA_INLINE T at(int64_t t, int64_t s, int64_t) const { return values[t * stride + s]; }
  static MMVMAMBA_INLINE int64_t index(int64_t t, int64_t s, int64_t S) { return t * S + s; }
};
// ... or a vector for each state, constant over positions.
template <typename V>
struct ChannelWeights {
  const V* values;  // [S]
  MMVMAMBA_INLINE V at(int64_t, int64_t s, int64_t) const { return values[s]; }
  static MMVMAMBA_INLINE int64_t index(int64_t, int64_t s, int64_t) { return s; }
};

template <typename V>
MMVMAMBA_INLINE V add_up(const V (&parts)[kSideBySide]) {
  static_assert(kSideBySide == 4, "");
  return (parts[0] + parts[1]) + (parts[2] + parts[3]);
}

// y[t] = C_t . h_t with h_t = exp(dt_t A) h_{t-1} + dt_t B_t x_t. `h` [S] goes in and out.
template <int kStates, typename V, typename WB, typename WC>
MMVMAMBA_INLINE void scan_chunk(int64_t length, int64_t states, const V* x, const V* dt, const V* A,
                                WB B, WC C, V* h, V* y) {
  if constexpr (kStates == 1) {
    V state = h[0];
    const V rate = A[0];
    for_each_block(length, [&](auto block, int64_t t) {
      constexpr int N = decltype(block)::value;
      V decay[N];
      MMVMAMBA_EACH decay[u] = dt[t + u] * rate;
      expv<N>(decay, decay);
      MMVMAMBA_EACH {
        state = decay[u] * state + (dt[t + u] * x[t + u]) * B.at(t + u, 0, 1);
        y[t + u] = state * C.at(t + u, 0, 1);
      }
    });
    h[0] = state;
  } else {
    for (int64_t t = 0; t < length; ++t) {
      const V drive = dt[t] * x[t];
      V sum[kSideBySide] = {};  // partial sums lose fewer digits, and do not wait for each other
      for_each_block(states, [&](auto block, int64_t s) {
        constexpr int N = decltype(block)::value;
        V decay[N];
        MMVMAMBA_EACH decay[u] = dt[t] * A[s + u];
        expv<N>(decay, decay);
        MMVMAMBA_EACH {
          h[s + u] = decay[u] * h[s + u] + drive * B.at(t, s + u, states);
          sum[u] = sum[u] + h[s + u] * C.at(t, s + u, states);
        }
      });
      y[t] = add_up(sum);
    }
  }
}

// What a chunk's backward keeps of its forward, and where it adds the gradients of B and C.
template <typename V>
struct ChunkRoom {
  V* decay;   // [kChunk][S]
  V* h;       // [kChunk + 1][S], the state before the chunk first
  V* grad_B;  // by the weights' index; shared ones are summed over lanes by the caller
  V* grad_C;
  V* grad_A;  // [S], of this chunk: sums of sums lose fewer digits over a long sequence

  static int64_t size(int64_t states) { return (4 * kChunk + 2) * states; }
};

// The decays and states of a chunk, from room.h[0 .. S) on.
template <int kStates, typename V, typename WB>
MMVMAMBA_INLINE void recompute_chunk(int64_t length, int64_t states, const V* x, const V* dt,
                                     const V* A, WB B, const ChunkRoom<V>& room) {
  if constexpr (kStates == 1) {
    const V rate = A[0];
    for_each_block(length, [&](auto block, int64_t t) {
      constexpr int N = decltype(block)::value;
      V decay[N];
      MMVMAMBA_EACH decay[u] = dt[t + u] * rate;
      expv<N>(decay, decay);
      MMVMAMBA_EACH {
        room.decay[t + u] = decay[u];
        room.h[t + u + 1] = decay[u] * room.h[t + u] + (dt[t + u] * x[t + u]) * B.at(t + u, 0, 1);
      }
    });
  } else {
    for (int64_t t = 0; t < length; ++t) {
      const V drive = dt[t] * x[t];
      const V* before = room.h + t * states;
      V *after = room.h + (t + 1) * states, *kept = room.decay + t * states;
      for_each_block(states, [&](auto block, int64_t s) {
        constexpr int N = decltype(block)::value;
        V decay[N];
        MMVMAMBA_EACH decay[u] = dt[t] * A[s + u];
        expv<N>(decay, decay);
        MMVMAMBA_EACH {
          kept[s + u] = decay[u];
          after[s + u] = decay[u] * before[s + u] + drive * B.at(t, s + u, states);
        }
      });
    }
  }
}

// The adjoint of scan_chunk after recompute_chunk. `grad_h` [S] is the gradient that flows back
// from later positions; it goes in and out. Writes grad_x[t] (of the scan alone) and grad_dt[t],
// adds to grad_A [S], room.grad_B and room.grad_C.
template <int kStates, typename V, typename WB, typename WC>
MMVMAMBA_INLINE void scan_chunk_backward(int64_t length, int64_t states, const V* x, const V* dt,
                                         const V* A, WB B, WC C, const V* grad_y,
                                         const ChunkRoom<V>& room, V* grad_h, V* grad_A, V* grad_x,
                                         V* grad_dt) {
  if constexpr (kStates == 1) {
    // What goes round the loop stays in registers.
    V carried = grad_h[0], sum_A{};
    const V rate = A[0];
    for (int64_t t = length - 1; t >= 0; --t) {
      const V g = grad_y[t] * C.at(t, 0, 1) + carried;  // of h_t
      V& grad_C = room.grad_C[WC::index(t, 0, 1)];
      V& grad_B = room.grad_B[WB::index(t, 0, 1)];
      grad_C = grad_C + grad_y[t] * room.h[t + 1];
      grad_B = grad_B + g * (dt[t] * x[t]);
      const V through_B = g * B.at(t, 0, 1);
      carried = g * room.decay[t];
      const V through_decay = carried * room.h[t];  // of dt_t A
      sum_A = sum_A + through_decay * dt[t];
      grad_x[t] = dt[t] * through_B;
      grad_dt[t] = x[t] * through_B + through_decay * rate;
    }
    grad_h[0] = carried;
    grad_A[0] = grad_A[0] + sum_A;
  } else {
    const int64_t S = states;
    for (int64_t s = 0; s < S; ++s) room.grad_A[s] = V{};
    for (int64_t t = length - 1; t >= 0; --t) {
      const V drive = dt[t] * x[t];
      V through_B[kSideBySide] = {}, through_A[kSideBySide] = {};
      for_each_block(S, [&](auto block, int64_t first) {
        constexpr int N = decltype(block)::value;
        MMVMAMBA_EACH {
          const int64_t s = first + u, i = t * S + s;
          const V g = grad_y[t] * C.at(t, s, S) + grad_h[s];
          V& grad_C = room.grad_C[WC::index(t, s, S)];
          V& grad_B = room.grad_B[WB::index(t, s, S)];
          grad_C = grad_C + grad_y[t] * room.h[i + S];
          grad_B = grad_B + g * drive;
          through_B[u] = through_B[u] + g * B.at(t, s, S);
          grad_h[s] = g * room.decay[i];
          const V through_decay = grad_h[s] * room.h[i];
          through_A[u] = through_A[u] + through_decay * A[s];
          room.grad_A[s] = room.grad_A[s] + through_decay * dt[t];
        }
      });
      const V sum_B = add_up(through_B);
      grad_x[t] = dt[t] * sum_B;
      grad_dt[t] = x[t] * sum_B + add_up(through_A);
    }
    for (int64_t s = 0; s < S; ++s) grad_A[s] = grad_A[s] + room.grad_A[s];
  }
}

// A sum over the chunks of a sequence, in a few sums by the chunks' numbers: one alone would lose
// the digits of as many additions as there are chunks.
template <typename V>
class ChunkSum {
 public:
  MMVMAMBA_INLINE void add(int64_t chunk, V value) {
    V& part = parts_[chunk % kParts];
    part = part + value;
  }
  MMVMAMBA_INLINE V total() const {
    V sum{};
    for (const V& part : parts_) sum = sum + part;
    return sum;
  }

 private:
  static constexpr int64_t kParts = 16;
  V parts_[kParts] = {};
};

// Aligned scratch memory of one thread, handed out in pieces; not initialized.
template <typename V>
class Scratch {
 public:
  explicit Scratch(int64_t vectors)
      : memory_(static_cast<V*>(::operator new(vectors * sizeof(V), kAlignment))) {}
  ~Scratch() { ::operator delete(memory_, kAlignment); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  V* vectors(int64_t count) {
    V* piece = memory_ + used_;
    used_ += count;
    return piece;
  }
  template <typename U>
  U* scalars(int64_t count) {
    return reinterpret_cast<U*>(vectors(ceil_div(count * sizeof(U), sizeof(V))));
  }
  ChunkRoom<V> room(int64_t states) {
    return {vectors(kChunk * states), vectors((kChunk + 1) * states), vectors(kChunk * states),
            vectors(kChunk * states), vectors(states)};
  }

 private:
  static constexpr std::align_val_t kAlignment{64};
  V* memory_;
  int64_t used_ = 0;
};
