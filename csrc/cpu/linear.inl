// Rows times a packed weight, for one instruction set; included after linear_common.inl.
//
// Every output element is one accumulator that adds its products in the order of k, whatever the
// shape of the tile. So a row's result does not depend on which rows come with it, bit for bit.
//
// bfloat16 weights are widened and multiplied in float32. The pair-wise bfloat16 instruction is
// not used: it does 16 products a cycle where two float32 units do 32, and it rounds differently.
//
// A tile is some rows times some panels. It reads its part of the weight once and its rows of x,
// which lie side by side for each k, once.

// Halves of a packed line: bfloat16 keeps two consecutive k in the halves of a 32-bit lane.
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

// acc[r][i] += x[r] * weight[i] for one k.
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

template <class T, int W, int Rows, int Panels>
void linear_tile(const LinearArgs& a, int64_t row, int64_t panel) {
  constexpr int kVectors = kLinearPanel / W;
  constexpr int64_t kLineBytes = 4 * kLinearPanel;
  const int64_t steps = a.in_features / kHalves<T>;
  const char* weight = static_cast<const char*>(a.weight) + panel * steps * kLineBytes;
  const float* x = static_cast<const float*>(a.x) + row * a.in_features;
  Vec<W> acc[Rows][Panels * kVectors] = {};
  for (int64_t k = 0; k < steps; ++k, x += Rows * kHalves<T>) {
    const char* lines[Panels * kVectors];
    for (int i = 0; i < Panels * kVectors; ++i) {
      lines[i] = weight + (i / kVectors * steps + k) * kLineBytes + i % kVectors * 4 * W;
    }
    // Panels are streams of their own, more than the hardware follows far enough ahead.
    for (int p = 0; p < Panels; ++p) __builtin_prefetch(lines[p * kVectors] + kPrefetchBytes);
    add_products<T, W, Rows, Panels * kVectors, 0>(acc, x, lines);
    if constexpr (kHalves<T> == 2) {
      add_products<T, W, Rows, Panels * kVectors, 1>(acc, x + Rows, lines);
    }
  }
  store_tile<W>(acc, a, row, panel);
}

template <class T, int W>
struct DenseTile {
  template <int Rows, int Panels>
  static void run(const LinearArgs& a, int64_t row, int64_t panel) {
    linear_tile<T, W, Rows, Panels>(a, row, panel);
  }
};

template <class T, int W>
void linear(const LinearArgs& a) {
  run_tiles<DenseTile<T, W>, kDenseShape>(a);
}
