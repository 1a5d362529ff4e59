// Rotary embedding of cached or new heads. See simd.inl for how this file is compiled.

template <int W, bool High>
struct InterleaveHalf {
  static constexpr int at(int lane) {
    const int position = High * W + lane;
    return position % 2 * W + position / 2;
  }
};

// Loads W consecutive pairs as two vectors: elements 2i and elements 2i + 1.
template <int W>
PS_INLINE void load_pairs(const float* p, Vec<W>& even, Vec<W>& odd) {
  const Vec<W> a = load<Vec<W>>(p), b = load<Vec<W>>(p + W);
  even = shuffle<EverySecondUnit<W, 1, W, 0>, W>(a, b);
  odd = shuffle<EverySecondUnit<W, 1, W, 1>, W>(a, b);
}
template <int W>
PS_INLINE void load_pairs(const bfloat16* p, Vec<W>& even, Vec<W>& odd) {
  load_chunk<W>(p, even, odd);
}
template <int W>
PS_INLINE void store_pairs(float* p, Vec<W> even, Vec<W> odd) {
  store(p, shuffle<InterleaveHalf<W, false>, W>(even, odd));
  store(p + W, shuffle<InterleaveHalf<W, true>, W>(even, odd));
}
template <int W>
PS_INLINE void store_pairs(bfloat16* p, Vec<W> even, Vec<W> odd) {
  store_chunk<W>(p, even, odd);
}

// Rotates pairs [begin, half): in full vectors, then the rest in vectors half as wide.
template <int W, bool Interleaved, class T>
PS_INLINE void rotate_pairs(const T* src, T* dst, const float* cos, const float* sin, int64_t begin,
                            int64_t half) {
  int64_t i = begin;
  for (; i + W <= half; i += W) {
    const Vec<W> c = load<Vec<W>>(cos + i), s = load<Vec<W>>(sin + i);
    Vec<W> x, y;
    if constexpr (Interleaved) {
      load_pairs<W>(src + 2 * i, x, y);
      store_pairs<W>(dst + 2 * i, x * c - y * s, y * c + x * s);
    } else {
      x = load_row<W>(src + i);
      y = load_row<W>(src + half + i);
      store_row<W>(dst + i, x * c - y * s);
      store_row<W>(dst + half + i, y * c + x * s);
    }
  }
  if constexpr (W > 1) {
    if (i < half) rotate_pairs<W / 2, Interleaved>(src, dst, cos, sin, i, half);
  }
}

template <class T>
PS_INLINE void rotate_head(const RotateArgs& args, const T* src, T* dst) {
  const int64_t half = args.rotary_dim / 2;
  const float *cos = args.angles, *sin = args.angles + half;
  if (args.interleaved) {
    rotate_pairs<kLanes, true>(src, dst, cos, sin, 0, half);
  } else {
    rotate_pairs<kLanes, false>(src, dst, cos, sin, 0, half);
  }
}

template <class T>
void rotate(const RotateArgs& args) {
  for (int64_t head = 0; head < args.num_heads; ++head) {
    const T* src = static_cast<const T*>(args.src) + head * args.src_stride;
    T* dst = static_cast<T*>(args.dst) + head * args.dst_stride;
    rotate_head(args, src, dst);
    if (src != dst) {
      __builtin_memcpy(dst + args.rotary_dim, src + args.rotary_dim,
                       (args.head_dim - args.rotary_dim) * sizeof(T));
    }
  }
}

// Rotates into int8 rows. Rows that are int8 already and need no rotation are copied.
template <class T>
void rotate_quantized(const RotateArgs& args) {
  const int head_dim = static_cast<int>(args.head_dim);
  for (int64_t head = 0; head < args.num_heads; ++head) {
    const T* src = static_cast<const T*>(args.src) + head * args.src_stride;
    int8_t* dst = static_cast<int8_t*>(args.dst) + head * args.dst_stride;
    if (kIsQuantized<T> && args.rotary_dim == 0) {
      if (args.src != args.dst) __builtin_memcpy(dst, src, head_dim + kScaleBytes);
      continue;
    }
    float row[kMaxHeadDim];
    widen_row(src, head_dim, row);
    rotate_head(args, row, row);
    quantize_row(row, head_dim, dst);
  }
}
