// A product with two thin matrices, for one row at a time: what it gives does not depend on others.

constexpr int kDotsAtOnce = 4;     // rows of `down` that share each load of x
constexpr int kVectorsAtOnce = 4;  // of `out`, that share each product

template <class T, int Count>
PS_INLINE void dot_rows(const LowRankArgs& a, int64_t first) {
  const T* x = static_cast<const T*>(a.x);
  const T* down = static_cast<const T*>(a.down) + first * a.in_features;
  Vec<kLanes> sums[Count]{};
  for_row(a.in_features, [&](int64_t i, auto access) {
    const Vec<kLanes> input = access.get(x + i);
    for (int j = 0; j < Count; ++j) sums[j] += input * access.get(down + j * a.in_features + i);
  });
  for (int j = 0; j < Count; ++j) {
    a.products[first + j] = a.scaling * horizontal_sum<kLanes>(sums[j]);
  }
}

template <class T, int Count, class Access>
PS_INLINE void add_columns(const LowRankArgs& a, int64_t first, Access access) {
  const T* up = static_cast<const T*>(a.up) + first;
  T* out = static_cast<T*>(a.out) + first;
  Vec<kLanes> sums[Count]{};
  for (int64_t j = 0; j < a.rank; ++j) {
    const Vec<kLanes> product = splat<kLanes>(a.products[j]);
    for (int v = 0; v < Count; ++v) {
      sums[v] += product * access.get(up + j * a.columns + v * kLanes);
    }
  }
  for (int v = 0; v < Count; ++v) {
    access.put(out + v * kLanes, access.get(out + v * kLanes) + sums[v]);
  }
}

template <class T>
void add_low_rank(const LowRankArgs& a) {
  int64_t j = 0;
  for (; j + kDotsAtOnce <= a.rank; j += kDotsAtOnce) dot_rows<T, kDotsAtOnce>(a, j);
  for (; j < a.rank; ++j) dot_rows<T, 1>(a, j);
  constexpr int64_t kWide = kVectorsAtOnce * kLanes;
  int64_t i = 0;
  for (; i + kWide <= a.columns; i += kWide) {
    add_columns<T, kVectorsAtOnce>(a, i, WholeVector{});
  }
  for (; i + kLanes <= a.columns; i += kLanes) add_columns<T, 1>(a, i, WholeVector{});
  for (; i < a.columns; ++i) add_columns<T, 1>(a, i, OneElement{});
}
