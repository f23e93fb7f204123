// The table of an instruction set's kernels. Included as `vec.h` is.

template <typename io_t>
static Kernels make_kernels() {
  using Map = SS2D<io_t>;
  using Sequence = SelectiveScan<io_t>;
  return {Map::kLanes,
          {Map::forward_any, Map::backward_any},
          {Sequence::pack, Sequence::forward_any, Sequence::backward_any}};
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
