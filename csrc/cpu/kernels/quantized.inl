// Rows of an int8 cache: head_dim elements and their scale. See simd.inl for how this is compiled.

template <class T>
constexpr bool kIsQuantized = sizeof(T) == 1;

template <class T>
PS_INLINE float row_scale(const T* row, int head_dim) {
  float scale = 1.0f;
  if constexpr (kIsQuantized<T>) __builtin_memcpy(&scale, row + head_dim, sizeof(scale));
  return scale;
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
