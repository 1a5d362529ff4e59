// Rows of an int8 cache: head_dim elements and their scale. See simd.inl for how this is compiled.

template <class T>
constexpr bool kIsQuantized = sizeof(T) == 1;

template <class T>
PS_INLINE float row_scale(const T* row, int head_dim) {
  float scale = 1.0f;
  if constexpr (kIsQuantized<T>) __builtin_memcpy(&scale, row + head_dim, sizeof(scale));
  return scale;
}

// Multiplies the W columns that begin at x by the scales of W rows of the cache.
template <int W, int R, class T>
PS_INLINE void scale_columns(const T* cache, const int64_t* offsets, int head_dim, float* x,
                             int stride) {
  if constexpr (kIsQuantized<T>) {
    Vec<W> scales;
    for (int i = 0; i < W; ++i) scales[i] = row_scale(cache + offsets[i], head_dim);
    for (int r = 0; r < R; ++r) store(x + r * stride, load<Vec<W>>(x + r * stride) * scales);
  }
}

// Loads the chunk that starts at a row's element `start`, times the row's scale.
template <int W, class T>
PS_INLINE void load_scaled_chunk(const T* row, int start, int head_dim, Vec<W>& lo, Vec<W>& hi) {
  load_chunk<W>(row + start, lo, hi);
  if constexpr (kIsQuantized<T>) {
    const float scale = row_scale(row, head_dim);
    lo *= scale;
    hi *= scale;
  }
}

// 8, or less where vectors are shorter; head_dim is always a multiple.
constexpr int kRowLanes = kLanes < 8 ? kLanes : 8;

template <class T>
PS_INLINE void widen_row(const T* row, int head_dim, float* out) {
  constexpr int W = kRowLanes;
  for (int d = 0; d < head_dim; d += W) {
    store(out + d, load_row<W>(row + d) * row_scale(row, head_dim));
  }
}

// Quantises a row with the scale max |x| / 127, or NaN if any element is infinite or NaN.
inline void quantize_row(const float* x, int head_dim, int8_t* row) {
  constexpr int W = kRowLanes;
  Vec<W> max{}, nothing{};
  for (int d = 0; d < head_dim; d += W) {
    const Vec<W> v = load<Vec<W>>(x + d), size = v < 0.0f ? -v : v;
    max = size > max ? size : max;
    nothing += v * 0.0f;
  }
  const auto [scale, inverse] = quantized_scale(horizontal_max<W>(max), horizontal_sum<W>(nothing));
  for (int d = 0; d < head_dim; d += W) {
    const IVec<W> bits = (IVec<W>)(load<Vec<W>>(x + d) * inverse + kRoundingShift);
    for (int i = 0; i < W; ++i) row[d + i] = static_cast<int8_t>(bits[i]);
  }
  __builtin_memcpy(row + head_dim, &scale, sizeof(scale));
}
