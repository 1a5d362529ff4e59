// Fused row-wise operations of a layer. See simd.inl for how this file is compiled.

// Access to a vector of consecutive elements, or to a single element in the first lane. Rows whose
// length is not a multiple of the vector's are rare, so both run the same code.
struct WholeVector {
  template <class T>
  static PS_INLINE Vec<kLanes> get(const T* p) {
    return load_row<kLanes>(p);
  }
  template <class T>
  static PS_INLINE void put(T* p, Vec<kLanes> v) {
    store_row<kLanes>(p, v);
  }
};
struct OneElement {
  template <class T>
  static PS_INLINE Vec<kLanes> get(const T* p) {
    const T padded[kLanes] = {*p};
    return load_row<kLanes>(padded);
  }
  template <class T>
  static PS_INLINE void put(T* p, Vec<kLanes> v) {
    T padded[kLanes];
    store_row<kLanes>(padded, v);
    *p = padded[0];
  }
};

// Calls body(i, access) for each whole vector of a row, then for each remaining element.
template <class Body>
PS_INLINE void for_row(int64_t dim, const Body& body) {
  int64_t i = 0;
  for (; i + kLanes <= dim; i += kLanes) body(i, WholeVector{});
  for (; i < dim; ++i) body(i, OneElement{});
}

template <class T>
void rms_norm(const RmsNormArgs& a, int64_t row_begin, int64_t row_end) {
  for (int64_t row = row_begin; row < row_end; ++row) {
    T* residual = static_cast<T*>(a.residual) + row * a.dim;
    T* out = static_cast<T*>(a.out) + row * a.dim;
    if (a.delta != nullptr) {
      const T* delta = static_cast<const T*>(a.delta) + row * a.dim;
      for_row(a.dim, [&](int64_t i, auto access) {
        access.put(residual + i, access.get(residual + i) + access.get(delta + i));
      });
    }
    Vec<kLanes> squares{};
    for_row(a.dim, [&](int64_t i, auto access) {
      const Vec<kLanes> x = access.get(residual + i);
      squares += x * x;
    });
    const float mean = horizontal_sum<kLanes>(squares) / static_cast<float>(a.dim);
    const Vec<kLanes> scale = splat<kLanes>(1.0f / __builtin_sqrtf(mean + a.eps));
    for_row(a.dim, [&](int64_t i, auto access) {
      access.put(out + i, access.get(residual + i) * scale * access.get(a.weight + i));
    });
  }
}

// Returns x / (1 + e^-x), computed from e^-|x| so that nothing overflows.
PS_INLINE Vec<kLanes> silu(Vec<kLanes> x) {
  const Vec<kLanes> power = exp2_nonpositive<kLanes>((x < 0.0f ? x : -x) * kLog2E);
  return x * (x < 0.0f ? power : splat<kLanes>(1.0f)) / (1.0f + power);
}

template <class T>
void silu_and_mul(const void* gate_up, void* result, int64_t dim, int64_t row_begin,
                  int64_t row_end) {
  for (int64_t row = row_begin; row < row_end; ++row) {
    const T* gate = static_cast<const T*>(gate_up) + row * 2 * dim;
    T* out = static_cast<T*>(result) + row * dim;
    for_row(dim, [&](int64_t i, auto access) {
      access.put(out + i, silu(access.get(gate + i)) * access.get(gate + dim + i));
    });
  }
}
