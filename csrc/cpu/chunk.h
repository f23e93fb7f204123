// The scan of one chunk of at most kChunk positions for one vector of channels, forward and
// backward: the part that ss2d_scan and selective_scan share. Included as `vec.h` is.
//
// States S are 1 at compile time (kStates = 1) or any number (kStates = 0). A is in base 2, that
// is, multiplied by log2(e). Vectors of channels are indexed [t] or [t][s].

constexpr double kLog2e = 1.44269504088896340736;
constexpr double kLn2 = 0.69314718055994530942;

// y[t] = C_t . h_t with h_t = 2^(dt_t A) h_{t-1} + dt_t B_t x_t. `h` [S] goes in and out.
template <int kStates, typename T, typename V>
MMVMAMBA_INLINE void scan_chunk(int64_t length, int64_t states, const V* x, const V* dt, const V* A,
                                const T* B, const T* C, V* h, V* y) {
  if constexpr (kStates == 1) {
    V state = h[0];
    const V rate = A[0];
    for (int64_t t = 0; t < length; ++t) {
      state = exp2v(dt[t] * rate) * state + (dt[t] * x[t]) * B[t];
      y[t] = state * C[t];
    }
    h[0] = state;
  } else {
    for (int64_t t = 0; t < length; ++t) {
      const V drive = dt[t] * x[t];
      V sum{};
      for (int64_t s = 0; s < states; ++s) {
        h[s] = exp2v(dt[t] * A[s]) * h[s] + drive * B[t * states + s];
        sum = sum + h[s] * C[t * states + s];
      }
      y[t] = sum;
    }
  }
}

// Room that a chunk's backward needs: decays and states of all its positions.
template <typename V>
struct ChunkBackward {
  V* decay;   // [kChunk][S]
  V* h;       // [kChunk + 1][S], the state before the chunk first
  V* grad_B;  // [kChunk][S], summed over lanes by the caller; accumulated over blocks
  V* grad_C;  // [kChunk][S]
};

// The adjoint of scan_chunk. `grad_h` [S] is the gradient that flows back from later positions; it
// goes in and out. Writes grad_x[t] (of the scan alone) and grad_dt[t], adds to grad_A [S] (in
// natural units) and to room.grad_B, room.grad_C.
template <int kStates, typename T, typename V>
MMVMAMBA_INLINE void scan_chunk_backward(int64_t length, int64_t states, const V* x, const V* dt,
                                         const V* A, const T* B, const T* C, const V* grad_y,
                                         const V* h_before, const ChunkBackward<V>& room, V* grad_h,
                                         V* grad_A, V* grad_x, V* grad_dt) {
  const int64_t S = kStates == 1 ? 1 : states;
  for (int64_t s = 0; s < S; ++s) room.h[s] = h_before[s];
  for (int64_t t = 0; t < length; ++t) {
    const V drive = dt[t] * x[t];
    for (int64_t s = 0; s < S; ++s) {
      const V decay = exp2v(dt[t] * A[s]);
      room.decay[t * S + s] = decay;
      room.h[(t + 1) * S + s] = decay * room.h[t * S + s] + drive * B[t * S + s];
    }
  }
  const T ln2 = static_cast<T>(kLn2);
  for (int64_t t = length - 1; t >= 0; --t) {
    const V drive = dt[t] * x[t];
    V through_B{}, through_A{};
    for (int64_t s = 0; s < S; ++s) {
      const int64_t i = t * S + s;
      const V g = grad_y[t] * C[i] + grad_h[s];  // of h_t
      room.grad_C[i] = room.grad_C[i] + grad_y[t] * room.h[i + S];
      room.grad_B[i] = room.grad_B[i] + g * drive;
      through_B = through_B + g * B[i];
      grad_h[s] = g * room.decay[i];
      const V through_decay = grad_h[s] * room.h[i];  // of dt_t A
      through_A = through_A + through_decay * A[s];
      grad_A[s] = grad_A[s] + through_decay * dt[t];
    }
    grad_x[t] = dt[t] * through_B;
    grad_dt[t] = x[t] * through_B + through_A * ln2;
  }
}
