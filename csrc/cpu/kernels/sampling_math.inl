// The sampler's arithmetic: float64 vectors, an exponential, bisection over the bits of a float.
// See simd.inl for how this file is compiled.

constexpr int kHalf = kLanes / 2;  // float64 lanes of a vector
typedef float HalfVec __attribute__((vector_size(4 * kHalf)));
typedef double DVec __attribute__((vector_size(8 * kHalf)));
typedef int64_t LVec __attribute__((vector_size(8 * kHalf)));

PS_INLINE DVec load_double(const float* p) {
  return __builtin_convertvector(load<HalfVec>(p), DVec);
}

template <int W>
PS_INLINE int32_t horizontal_sum(IVec<W> v) {
  int32_t sum = 0;
  for (int i = 0; i < W; ++i) sum += v[i];
  return sum;
}

PS_INLINE double horizontal_sum(DVec v) {
  double sum = 0;
  for (int i = 0; i < kHalf; ++i) sum += v[i];
  return sum;
}

// Returns e^x for x <= 0 to about one unit in the last place; 0 below e^-707.
PS_INLINE DVec exp_nonpositive(DVec x) {
  const DVec clamped = x < -707.0 ? DVec{} - 707.0 : x;
  // Adding 1.5 * 2^52 leaves the nearest integer in the low mantissa bits.
  const DVec shifted = clamped * 1.4426950408889634 + 6755399441055744.0;
  const DVec n = shifted - 6755399441055744.0;
  const DVec r = (clamped - n * 6.93147180369123816490e-01) - n * 1.90821492927058770002e-10;
  DVec y = DVec{} + 1.0 / 6227020800;
  y = y * r + 1.0 / 479001600;
  y = y * r + 1.0 / 39916800;
  y = y * r + 1.0 / 3628800;
  y = y * r + 1.0 / 362880;
  y = y * r + 1.0 / 40320;
  y = y * r + 1.0 / 5040;
  y = y * r + 1.0 / 720;
  y = y * r + 1.0 / 120;
  y = y * r + 1.0 / 24;
  y = y * r + 1.0 / 6;
  y = y * r + 0.5;
  y = y * r + 1.0;
  y = y * r + 1.0;
  const DVec power = (DVec)((LVec)y + ((LVec)shifted << 52));
  return x < -707.0 ? DVec{} : power;
}

// Maps floats to integers of the same order, and back.
PS_INLINE int32_t to_key(float x) {
  const int32_t bits = __builtin_bit_cast(int32_t, x);
  return bits ^ ((bits >> 31) & 0x7fffffff);
}
PS_INLINE float from_key(int32_t key) {
  return __builtin_bit_cast(float, key ^ ((key >> 31) & 0x7fffffff));
}

// Returns the largest x in [low, high] with is_low(x). is_low must hold for low and be monotonic.
template <class IsLow>
PS_INLINE float bisect(float low, float high, const IsLow& is_low) {
  int64_t first = to_key(low), last = to_key(high);
  while (first < last) {
    const int64_t middle = first + (last - first + 1) / 2;
    if (is_low(from_key(static_cast<int32_t>(middle)))) {
      first = middle;
    } else {
      last = middle - 1;
    }
  }
  return from_key(static_cast<int32_t>(first));
}

// Returns the largest of `size` floats, a multiple of kLanes, or NaN if any of them is NaN.
PS_INLINE float max_or_nan(const float* x, int64_t size) {
  Vec<kLanes> most = load<Vec<kLanes>>(x);
  IVec<kLanes> nan = most != most;
  for (int64_t i = kLanes; i < size; i += kLanes) {
    const Vec<kLanes> next = load<Vec<kLanes>>(x + i);
    nan |= next != next;
    most = next > most ? next : most;
  }
  return horizontal_sum<kLanes>(nan) != 0 ? __builtin_nanf("") : horizontal_max<kLanes>(most);
}
