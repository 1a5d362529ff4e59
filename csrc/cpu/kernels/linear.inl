// Rows times a packed weight. Included after linear_common.inl, once per instruction set.
//
// Each output element has one accumulator, which adds its products in the order of k whatever the
// shape of the tile. So a row's result is bit-identical whatever rows are computed with it.
//
// bfloat16 weights are widened and multiplied in float32. The pairwise bfloat16 instruction is not
// used: it does 16 products a cycle where two float32 units do 32, and it rounds differently.
//
// A tile is some rows times some panels. For each k, the tile's elements of x are adjacent.

// The k values that share a 32-bit lane of a packed line: two bfloat16, or one float32.
template <class T>
constexpr int kHalves = 4 / sizeof(T);

template <class T, int W, int Half>
PS_INLINE Vec<W> load_weight(const char* p) {
  if constexpr (sizeof(T) == 4) {
    return load<Vec<W>>(p);
  } else if constexpr (Half == 0) {
    return (Vec<W>)(load<UVec<W>>(p) << 16);
  } else {
    return (Vec<W>)(load<UVec<W>>(p) & 0xffff0000u);
  }
}

// Computes acc[r][i] += x[r] * weight[i] for one k.
template <class T, int W, int Rows, int Vectors, int Half>
PS_INLINE void add_products(Vec<W> (&acc)[Rows][Vectors], const float* x,
                            const char* const (&lines)[Vectors]) {
  Vec<W> weights[Vectors];
  for (int i = 0; i < Vectors; ++i) weights[i] = load_weight<T, W, Half>(lines[i]);
  for (int r = 0; r < Rows; ++r) {
    const Vec<W> input = splat<W>(x[r]);
    for (int i = 0; i < Vectors; ++i) acc[r][i] += input * weights[i];
  }
}

template <class T, int W>
struct DenseTile {
  static constexpr int64_t kStep = kHalves<T>;  // consecutive k in a line
  static constexpr int64_t kStepBytes = 4 * kLinearPanel;
  static constexpr int64_t kSpan = 32;

  template <int Rows, int Panels>
  static void run(const LinearArgs& a, int64_t row, int64_t panel, const Span& span) {
    constexpr int V = kLinearPanel / W;
    const int64_t panel_bytes = span.num_steps * kStepBytes;
    const char* weight = static_cast<const char*>(a.weight) + panel * panel_bytes;
    const float* x = static_cast<const float*>(a.x) + row * a.in_features;
    x += span.begin * kStep * Rows;
    const char* ahead = span.ahead;
    Vec<W> acc[Rows][Panels * V];
    begin_span<W>(acc, span);
    for (int64_t step = span.begin; step < span.end; ++step, x += kStep * Rows) {
      const char* lines[Panels * V];
      for (int i = 0; i < Panels * V; ++i) {
        lines[i] = weight + i / V * panel_bytes + step * kStepBytes + i % V * 4 * W;
      }
      // Each panel is a separate stream, and there are too many for the hardware prefetcher.
      for (int p = 0; p < Panels; ++p) __builtin_prefetch(ahead + p * panel_bytes);
      ahead += span.ahead_bytes;
      add_products<T, W, Rows, Panels * V, 0>(acc, x, lines);
      if constexpr (kStep == 2) add_products<T, W, Rows, Panels * V, 1>(acc, x + Rows, lines);
    }
    end_span<W>(acc, span, a, row, panel);
  }
};

template <class T, int W>
void linear(const LinearArgs& a) {
  run_tiles<DenseTile<T, W>, kDenseShape>(a);
}

// Widens a tile of x and transposes it from [rows, columns] to [columns, rows].
template <class T, int W>
void pack_rows(const PackRowsArgs& a) {
  const T* from = static_cast<const T*>(a.x);
  const int rows = static_cast<int>(a.rows);
  int64_t k = 0;
  // Each line is stored as a whole vector; the next line then overwrites the excess.
  for (; rows <= W && (k + W) * rows + W <= a.columns * rows; k += W) {
    Vec<W> lines[W];
    for (int r = 0; r < W; ++r) {
      lines[r] = r < rows ? load_row<W>(from + r * a.stride + k) : Vec<W>{};
    }
    transpose<W>(lines);
    for (int i = 0; i < W; ++i) store(a.out + (k + i) * rows, lines[i]);
  }
  for (; k < a.columns; ++k) {
    for (int r = 0; r < rows; ++r) {
      const T element[W] = {from[r * a.stride + k]};
      a.out[k * rows + r] = load_row<W>(element)[0];
    }
  }
}
