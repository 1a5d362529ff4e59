// Shared by the linear kernels: the loop over tiles and the stores of results. Included after
// simd.inl, once per instruction set.

// Stores one panel of one row; the weight's last panel may have fewer columns.
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

// The steps [begin, end) of its weight that a tile computes in one pass. Between passes its sums
// are kept in memory. `ahead` is the address to prefetch at the first step in the first panel; it
// advances by `ahead_bytes` per step.
struct Span {
  int64_t begin, end;
  int64_t num_steps;
  float* sums;  // [rows, panels * kLinearPanel]
  const char* ahead;
  int64_t ahead_bytes;
};

constexpr int64_t kLineBytes = 4 * kLinearPanel;

// The lines of neighbouring panels, V vectors in all: a line is one step of one panel.
template <int W, int V>
struct PanelLines {
  static constexpr int kPerLine = kLinearPanel / W;

  PanelLines(const LinearArgs& a, int64_t panel, const Span& span)
      : panel_bytes(span.num_steps * kLineBytes),
        weight(static_cast<const char*>(a.weight) + panel * panel_bytes),
        ahead(span.ahead - span.begin * span.ahead_bytes),
        ahead_bytes(span.ahead_bytes) {}

  PS_INLINE const char* at(int64_t step, int vector) const {
    return weight + vector / kPerLine * panel_bytes + step * kLineBytes + vector % kPerLine * 4 * W;
  }
  // Each panel is a separate stream, and there are too many for the hardware prefetcher.
  PS_INLINE void prefetch(int64_t step) const {
    const char* from = ahead + step * ahead_bytes;
    for (int p = 0; p < V / kPerLine; ++p) __builtin_prefetch(from + p * panel_bytes);
  }

  const int64_t panel_bytes;
  const char* const weight;
  const char* const ahead;
  const int64_t ahead_bytes;
};

template <int W, int Rows, int Vectors>
PS_INLINE void begin_span(Vec<W> (&acc)[Rows][Vectors], const Span& span) {
  for (int r = 0; r < Rows; ++r) {
    for (int i = 0; i < Vectors; ++i) {
      acc[r][i] = span.begin == 0 ? Vec<W>{} : load<Vec<W>>(span.sums + (r * Vectors + i) * W);
    }
  }
}

template <int W, int Rows, int Vectors>
PS_INLINE void end_span(Vec<W> (&acc)[Rows][Vectors], const Span& span, const LinearArgs& a,
                        int64_t row, int64_t panel) {
  if (span.end == span.num_steps) return store_tile<W>(acc, a, row, panel);
  for (int r = 0; r < Rows; ++r) {
    for (int i = 0; i < Vectors; ++i) store(span.sums + (r * Vectors + i) * W, acc[r][i]);
  }
}

// Tall tiles have many rows and few panels, wide ones the reverse, as registers allow.
struct TileShape {
  int tall_rows, tall_panels;
  int wide_rows, wide_panels;
};

// Runs the instance for exactly `rows` rows.
template <class Tile, int Panels, int Rows>
void run_rows(const LinearArgs& a, int64_t row, int64_t rows, int64_t panel, const Span& span) {
  if constexpr (Rows > 0) {
    if (rows == Rows) {
      Tile::template run<Rows, Panels>(a, row, panel, span);
    } else {
      run_rows<Tile, Panels, Rows - 1>(a, row, rows, panel, span);
    }
  }
}

// Several tiles process the weight together, span by span, so that the reads of each span from
// memory are spread over all of them instead of delaying the first.
template <class Tile, int Panels, int MaxRows>
void run_panels(const LinearArgs& a, int64_t panel) {
  const int64_t steps = a.in_features / Tile::kStep, num_tiles = a.tile_end - a.tile_begin;
  const int64_t panel_bytes = steps * Tile::kStepBytes;
  const char* weight = static_cast<const char*>(a.weight) + panel * panel_bytes;
  const int64_t first_row = a.tile_row(a.tile_begin);
  if (num_tiles == 1) {
    const Span whole{0, steps, steps, nullptr, weight + kPrefetchBytes, Tile::kStepBytes};
    return run_rows<Tile, Panels, MaxRows>(a, first_row, a.tile_row(a.tile_end) - first_row, panel,
                                           whole);
  }
  float sums[Tile::kMaxTiles * MaxRows * Panels * kLinearPanel];
  for (int64_t begin = 0; begin < steps; begin += Tile::kSpan) {
    const int64_t end = begin + Tile::kSpan < steps ? begin + Tile::kSpan : steps;
    const char* next = weight + (end < steps ? end * Tile::kStepBytes : Panels * panel_bytes);
    for (int64_t tile = a.tile_begin; tile < a.tile_end; ++tile) {
      const int64_t row = a.tile_row(tile), index = tile - a.tile_begin;
      const int64_t share = (Tile::kStepBytes + num_tiles - 1) / num_tiles;
      const Span span{begin,
                      end,
                      steps,
                      sums + (row - first_row) * Panels * kLinearPanel,
                      next + index * share * (end - begin),
                      share};
      run_rows<Tile, Panels, MaxRows>(a, row, a.tile_row(tile + 1) - row, panel, span);
    }
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

// Widens a tile of x and transposes it from [rows, columns] to [columns, rows].
template <class T, int W>
void pack_rows(const PackRowsArgs& a) {
  const auto at = [&](int64_t row, int64_t k) {
    return reinterpret_cast<const T*>(a.x + row * a.stride) + k;
  };
  float* out = static_cast<float*>(a.out);
  const int rows = static_cast<int>(a.rows);
  int64_t k = 0;
  // Each line is stored as a whole vector; the next line then overwrites the excess.
  for (; rows <= W && (k + W) * rows + W <= a.columns * rows; k += W) {
    Vec<W> lines[W];
    for (int r = 0; r < W; ++r) lines[r] = r < rows ? load_row<W>(at(r, k)) : Vec<W>{};
    transpose<W>(lines);
    for (int i = 0; i < W; ++i) store(out + (k + i) * rows, lines[i]);
  }
  for (; k < a.columns; ++k) {
    for (int r = 0; r < rows; ++r) {
      T element[W] = {};
      __builtin_memcpy(element, at(r, k), sizeof(T));
      out[k * rows + r] = load_row<W>(element)[0];
    }
  }
}
