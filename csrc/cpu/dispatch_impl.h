// The table of an instruction set's kernels. Included as `vec.h` is.

template <typename io_t>
static Kernels make_kernels() {
  using Map = SS2D<io_t>;
  using Sequence = SelectiveScan<io_t>;
  FusedKernels fused{};
  if constexpr (!std::is_same<io_t, double>::value) {
    using Fused = FusedOps<io_t>;
    fused = {Fused::layer_norm, Fused::bias_gelu, Fused::depthwise_silu};
  }
  return {Map::kLanes,
          {Map::pack, Map::unpack, Map::forward_any, Map::backward_any},
          {Sequence::pack, Sequence::forward_any, Sequence::backward_any},
          fused};
}

Kernels kernels(Io io) {
  switch (io) {
    case Io::kFloat:
      return make_kernels<float>();
    case Io::kBFloat16:
      return make_kernels<bf16>();
    default:
      return make_kernels<double>();
  }
}
