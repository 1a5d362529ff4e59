// What linear kernels share: the walk over tiles, and how results are stored; for one instruction
// set, included after simd.inl.

// Stores one panel of one row; the last panel of the weight may have fewer columns.
template <int W, class Out>
PS_INLINE void store_panel(const Vec<W>* acc, Out* out, int columns) {
  if (columns >= kLinearPanel) {
    for (int v = 0; v < kLinearPanel / W; ++v) store_row<W>(out + v * W, acc[v]);
    return;
  }
  Out whole[kLinearPanel];
  for (int v = 0; v < kLinearPanel / W; ++v) store_row<W>(whole + v * W, acc[v]);
  __builtin_memcpy(out, whole, columns * sizeof(Out));
}

template <int W>
PS_INLINE void add_bias(Vec<W>* acc, const float* bias, int columns) {
  for (int c = 0; c < kLinearPanel && c < columns; ++c) acc[c / W][c % W] += bias[c];
}

template <int W, int Rows, int Vectors>
PS_INLINE void store_tile(Vec<W> (&acc)[Rows][Vectors], const LinearArgs& a, int64_t row,
                          int64_t panel) {
  constexpr int kVectors = kLinearPanel / W;
  for (int r = 0; r < Rows; ++r) {
    for (int p = 0; p < Vectors / kVectors; ++p) {
      const int64_t column = (panel + p) * kLinearPanel;
      const int columns = static_cast<int>(a.out_features - column);
      Vec<W>* sums = acc[r] + p * kVectors;
      if (a.bias != nullptr) add_bias<W>(sums, a.bias + column, columns);
      const int64_t at = (row + r) * a.out_features + column;
      if (a.float_out) {
        store_panel<W>(sums, static_cast<float*>(a.out) + at, columns);
      } else {
        store_panel<W>(sums, static_cast<bfloat16*>(a.out) + at, columns);
      }
    }
  }
}

// Tiles of many rows take few panels at once, tiles of few rows more, as registers allow.
struct TileShape {
  int tall_rows, tall_panels;
  int wide_rows, wide_panels;
};

// The instance for exactly `rows` rows.
template <class Tile, int Panels, int Rows>
void run_rows(const LinearArgs& a, int64_t row, int64_t rows, int64_t panel) {
  if constexpr (Rows > 0) {
    if (rows == Rows) {
      Tile::template run<Rows, Panels>(a, row, panel);
    } else {
      run_rows<Tile, Panels, Rows - 1>(a, row, rows, panel);
    }
  }
}

template <class Tile, int Panels, int MaxRows>
void run_panels(const LinearArgs& a, int64_t panel) {
  for (int64_t t = a.tile_begin; t < a.tile_end; ++t) {
    const int64_t row = a.tile_row(t);
    run_rows<Tile, Panels, MaxRows>(a, row, a.tile_row(t + 1) - row, panel);
  }
}

template <class Tile, TileShape S>
void run_tiles(const LinearArgs& a) {
  int64_t panel = a.panel_begin;
  if (a.rows <= S.wide_rows) {
    for (; panel + S.wide_panels <= a.panel_end; panel += S.wide_panels) {
      run_panels<Tile, S.wide_panels, S.wide_rows>(a, panel);
    }
  }
  for (; panel + S.tall_panels <= a.panel_end; panel += S.tall_panels) {
    run_panels<Tile, S.tall_panels, S.tall_rows>(a, panel);
  }
  for (; panel < a.panel_end; ++panel) run_panels<Tile, 1, S.tall_rows>(a, panel);
}
