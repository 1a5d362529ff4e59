// Rows times a packed float32 weight. Included after linear_common.inl, once per instruction set.
//
// Each output element has one accumulator, which adds its products in the order of k whatever the
// shape of the tile. So a row's result is bit-identical whatever rows are computed with it.

template <int W>
struct Float32Tile {
  static constexpr int64_t kStep = 1;
  static constexpr int64_t kStepBytes = kLineBytes;
  static constexpr int64_t kSpan = 32;
  static constexpr int64_t kMaxTiles = kTilesPerItem;

  template <int Rows, int Panels>
  static void run(const LinearArgs& a, int64_t row, int64_t panel, const Span& span) {
    constexpr int V = Panels * kLinearPanel / W;
    const float* x = static_cast<const float*>(a.x) + row * a.in_features + span.begin * Rows;
    const PanelLines<W, V> lines(a, panel, span);
    Vec<W> acc[Rows][V];
    begin_span<W>(acc, span);
    for (int64_t step = span.begin; step < span.end; ++step, x += Rows) {
      lines.prefetch(step);
      Vec<W> weights[V];
      for (int i = 0; i < V; ++i) weights[i] = load<Vec<W>>(lines.at(step, i));
      for (int r = 0; r < Rows; ++r) {
        const Vec<W> input = splat<W>(x[r]);
        for (int i = 0; i < V; ++i) acc[r][i] += input * weights[i];
      }
    }
    end_span<W>(acc, span, a, row, panel);
  }
};

template <int W>
void float32_linear(const LinearArgs& a) {
  run_tiles<Float32Tile<W>, kFloat32Shape>(a);
}

constexpr DenseKernels kFloat32Linear = {float32_linear<kLanes>, pack_rows<float, kLanes>,
                                         kFloat32Shape.tall_rows, kTilesPerItem, sizeof(float)};
