// Rows times a packed weight, for one instruction set; included after simd.inl.
//
// Every output element is one accumulator that adds its products in the order of k, whatever the
// number of rows. So a row's result does not depend on which rows come with it, bit for bit.
//
// Bytes moved: the weight once per kLinearRows rows (from cache after the first), x once per
// kLinearPanels panels.

// How one dtype's products are formed: `kStep` consecutive k at a time, W columns per vector.
template <class T, int W>
struct Dot;

template <int W>
struct Dot<float, W> {
  static constexpr int kStep = 1;
  static constexpr int kLanes = W;
  using Weight = Vec<W>;
  using Input = Vec<W>;
  static PS_INLINE Weight weight(const char* p) { return load<Vec<W>>(p); }
  static PS_INLINE Input input(const float* x) { return splat<W>(*x); }
  static PS_INLINE Vec<W> add(Vec<W> acc, Input x, Weight w) { return acc + x * w; }
};

// Pairs of k share a 32-bit lane: the even one in its low half.
template <int W>
struct Dot<bfloat16, W> {
  static constexpr int kStep = 2;
  static constexpr int kLanes = W;
  struct Weight {
    Vec<W> even, odd;
  };
  struct Input {
    Vec<W> even, odd;
  };
  static PS_INLINE Weight weight(const char* p) {
    const UVec<W> pairs = load<UVec<W>>(p);
    return {(Vec<W>)(pairs << 16), (Vec<W>)(pairs & 0xffff0000u)};
  }
  static PS_INLINE Input input(const bfloat16* x) {
    const UVec<W> pair = UVec<W>{} + load<uint32_t>(x);
    return {(Vec<W>)(pair << 16), (Vec<W>)(pair & 0xffff0000u)};
  }
  static PS_INLINE Vec<W> add(Vec<W> acc, const Input& x, const Weight& w) {
    return acc + x.even * w.even + x.odd * w.odd;
  }
};

template <class T>
PS_INLINE float to_float(T x) {
  if constexpr (sizeof(T) == 4) {
    return x;
  } else {
    const uint32_t bits = uint32_t{x.bits} << 16;
    return load<float>(&bits);
  }
}

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

template <class D, class T, int Rows, int Panels>
void linear_tile(const LinearArgs& a, int64_t row, int64_t panel) {
  constexpr int W = D::kLanes;
  constexpr int kVectors = kLinearPanel / W;
  constexpr int64_t kStepBytes = kLinearPanel * D::kStep * sizeof(T);
  const int64_t steps = a.in_features / D::kStep;
  const char* w = static_cast<const char*>(a.weight) + panel * steps * kStepBytes;
  const T* x = static_cast<const T*>(a.x) + row * a.x_stride;
  Vec<W> acc[Rows][Panels * kVectors] = {};
  for (int64_t k = 0; k < steps; ++k) {
    typename D::Weight weights[Panels * kVectors];
    for (int p = 0; p < Panels; ++p) {
      const char* line = w + (p * steps + k) * kStepBytes;
      // Four panels are four streams, more than the hardware follows far enough by itself.
      __builtin_prefetch(line + kPrefetchBytes);
      for (int v = 0; v < kVectors; ++v) {
        weights[p * kVectors + v] = D::weight(line + v * W * D::kStep * sizeof(T));
      }
    }
    for (int r = 0; r < Rows; ++r) {
      const auto input = D::input(x + r * a.x_stride + k * D::kStep);
      for (int i = 0; i < Panels * kVectors; ++i) acc[r][i] = D::add(acc[r][i], input, weights[i]);
    }
  }
  for (int r = 0; r < Rows; ++r) {
    for (int p = 0; p < Panels; ++p) {
      const int64_t column = (panel + p) * kLinearPanel;
      Vec<W>* sums = acc[r] + p * kVectors;
      const int columns = static_cast<int>(a.out_features - column);
      if (a.bias != nullptr) {
        for (int c = 0; c < kLinearPanel && c < columns; ++c) {
          sums[c / W][c % W] += to_float(static_cast<const T*>(a.bias)[column + c]);
        }
      }
      const int64_t at = (row + r) * a.out_features + column;
      if (a.float_out) {
        store_panel<W>(sums, static_cast<float*>(a.out) + at, columns);
      } else {
        store_panel<W>(sums, static_cast<T*>(a.out) + at, columns);
      }
    }
  }
}

// Fewer rows than a whole tile: the instance for exactly that many.
template <class D, class T, int Panels, int Rows = kLinearRows>
void linear_rows(const LinearArgs& a, int64_t row, int64_t rows, int64_t panel) {
  if constexpr (Rows > 0) {
    if (rows == Rows) {
      linear_tile<D, T, Rows, Panels>(a, row, panel);
    } else {
      linear_rows<D, T, Panels, Rows - 1>(a, row, rows, panel);
    }
  }
}

template <class D, class T, int Panels>
void linear_panels(const LinearArgs& a, int64_t panel) {
  for (int64_t row = a.row_begin; row < a.row_end; row += kLinearRows) {
    const int64_t left = a.row_end - row;
    linear_rows<D, T, Panels>(a, row, left < kLinearRows ? left : kLinearRows, panel);
  }
}

template <class D, class T>
void linear(const LinearArgs& a) {
  int64_t panel = a.panel_begin;
  for (; panel + kLinearPanels <= a.panel_end; panel += kLinearPanels) {
    linear_panels<D, T, kLinearPanels>(a, panel);
  }
  for (; panel < a.panel_end; ++panel) linear_panels<D, T, 1>(a, panel);
}
