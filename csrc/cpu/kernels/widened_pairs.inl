// Products of bfloat16 pairs for instruction sets without an instruction for them: both elements
// are widened to float32. Included after multiply_add, before bfloat16_linear.inl.

// x is packed as [k][row] in float32.
struct PairInput {
  float elements[2];
};

template <int W>
void pack_pairs(const PackRowsArgs& a) {
  pack_rows<bfloat16, W>(a);
}

template <int W, int Rows, int V>
PS_INLINE void add_pair(Vec<W> (&sums)[Rows][V], const PairInput* x, const UVec<W> (&pairs)[V]) {
  const float* first = x->elements;
  const float* second = first + Rows;
  Vec<W> weights[V];
  for (int v = 0; v < V; ++v) weights[v] = (Vec<W>)(pairs[v] & 0xffff0000u);
  for (int r = 0; r < Rows; ++r) {
    const Vec<W> input = splat<W>(second[r]);
    for (int v = 0; v < V; ++v) sums[r][v] = multiply_add<W>(input, weights[v], sums[r][v]);
  }
  for (int v = 0; v < V; ++v) weights[v] = (Vec<W>)(pairs[v] << 16);
  for (int r = 0; r < Rows; ++r) {
    const Vec<W> input = splat<W>(first[r]);
    for (int v = 0; v < V; ++v) sums[r][v] = multiply_add<W>(input, weights[v], sums[r][v]);
  }
}
