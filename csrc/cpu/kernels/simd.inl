// Fixed-width float vectors on GCC/Clang vector extensions. Included once per ISA, inside that
// ISA's namespace and under its target pragma, so nothing here may instantiate std:: functions: the
// linker could keep an AVX-512 copy of one for the whole program.

#define PS_INLINE inline __attribute__((always_inline))

template <int W>
struct VecOf {
  typedef float F __attribute__((vector_size(4 * W)));
  typedef int32_t I __attribute__((vector_size(4 * W)));
  typedef uint32_t U __attribute__((vector_size(4 * W)));
  typedef uint16_t H __attribute__((vector_size(2 * W)));
  typedef int16_t S __attribute__((vector_size(2 * W)));
  typedef int8_t B __attribute__((vector_size(W)));
  typedef double D __attribute__((vector_size(8 * W)));
};
template <int W>
using Vec = typename VecOf<W>::F;
template <int W>
using IVec = typename VecOf<W>::I;
template <int W>
using UVec = typename VecOf<W>::U;

template <class V>
PS_INLINE V load(const void* p) {
  V v;
  __builtin_memcpy(&v, p, sizeof(V));
  return v;
}

template <class V>
PS_INLINE void store(void* p, V v) {
  __builtin_memcpy(p, &v, sizeof(V));
}

template <int W>
PS_INLINE Vec<W> splat(float x) {
  // Adding to an integer zero folds into a broadcast; a float zero would not, because of -0.
  return (Vec<W>)(UVec<W>{} + __builtin_bit_cast(uint32_t, x));
}

template <int W>
PS_INLINE UVec<W> round_to_bf16_bits(Vec<W> x) {
  const UVec<W> bits = (UVec<W>)x;
  const UVec<W> rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
  return (x == x ? rounded : bits | 0x00400000u) & 0xffff0000u;
}

// Index: a type with a static constexpr int at(int lane), the source lane in the pair (a, b).
template <class Index, int W, int... L>
PS_INLINE Vec<W> shuffle_lanes(Vec<W> a, Vec<W> b, std::integer_sequence<int, L...>) {
  return __builtin_shufflevector(a, b, Index::at(L)...);
}
template <class Index, int W>
PS_INLINE Vec<W> shuffle(Vec<W> a, Vec<W> b) {
  return shuffle_lanes<Index, W>(a, b, std::make_integer_sequence<int, W>{});
}

// Divides lanes into spans of `Span` lanes and these into units of `Unit` lanes. Unit u of a
// result's span is unit 2u + Odd of a's units followed by b's.
template <int W, int Unit, int Span, int Odd>
struct EverySecondUnit {
  static constexpr int at(int lane) {
    const int per_span = Span / Unit, unit = (lane % Span) / Unit;
    const int source = 2 * unit + Odd;
    const int vector = source / per_span;
    return vector * W + (lane / Span) * Span + (source % per_span) * Unit + lane % Unit;
  }
};

// Lane i of the result is lane i ^ Distance of the source.
template <int Distance>
struct ExchangeLanes {
  static constexpr int at(int lane) { return lane ^ Distance; }
};

// Combines all lanes pairwise; every lane receives the result.
template <int W, int Distance, class Combine>
PS_INLINE Vec<W> reduce(Vec<W> v, const Combine& combine) {
  if constexpr (Distance == 0) {
    return v;
  } else {
    return reduce<W, Distance / 2>(combine(v, shuffle<ExchangeLanes<Distance>, W>(v, v)), combine);
  }
}

template <int W>
PS_INLINE float horizontal_sum(Vec<W> v) {
  return reduce<W, W / 2>(v, [](Vec<W> a, Vec<W> b) { return a + b; })[0];
}

template <int W>
PS_INLINE float horizontal_max(Vec<W> v) {
  return reduce<W, W / 2>(v, [](Vec<W> a, Vec<W> b) { return b > a ? b : a; })[0];
}

template <int W, int H, bool High>
struct ExchangeQuadrants {
  static constexpr int at(int lane) {
    if constexpr (High) return lane & H ? W + lane : lane + H;
    return lane & H ? W + lane - H : lane;
  }
};

// Transposes N vectors, in each span of N lanes on its own.
template <int W, int N = W, int H = 1>
PS_INLINE void transpose(Vec<W>* v) {
  if constexpr (H < N) {
    for (int i = 0; i < N; ++i) {
      if (i & H) continue;
      const Vec<W> a = v[i], b = v[i + H];
      v[i] = shuffle<ExchangeQuadrants<W, H, false>, W>(a, b);
      v[i + H] = shuffle<ExchangeQuadrants<W, H, true>, W>(a, b);
    }
    transpose<W, N, 2 * H>(v);
  }
}

constexpr float kLog2E = 1.44269504f;

// Returns 2^x for x <= 0, relative error below 2e-7; exactly 0 below -126, NaN for NaN.
template <int W>
PS_INLINE Vec<W> exp2_nonpositive(Vec<W> x) {
  const Vec<W> clamped = x < -126.0f ? splat<W>(-126.0f) : x;
  // Adding 1.5 * 2^23 leaves the nearest integer in the low mantissa bits.
  const Vec<W> shifted = clamped + 12582912.0f;
  const Vec<W> f = clamped - (shifted - 12582912.0f);
  Vec<W> y = splat<W>(1.534580806e-4f);
  y = y * f + 1.339993090e-3f;
  y = y * f + 9.618489072e-3f;
  y = y * f + 5.550328642e-2f;
  y = y * f + 0.2402264625f;
  y = y * f + 0.6931471825f;
  y = y * f + 1.0f;
  const Vec<W> power = (Vec<W>)((UVec<W>)y + ((UVec<W>)shifted << 23));
  return x < -126.0f ? Vec<W>{} : power;
}

// Loads W signed bytes as float32.
template <int W>
PS_INLINE Vec<W> widen_bytes(const int8_t* p) {
#if defined(PAGED_STREAM_PMOVSX)
  // GCC compiles __builtin_convertvector to a dozen instructions where one will do. The masked form
  // avoids a warning from GCC's own header.
  IVec<W> wide;
  if constexpr (W == 16) {
    wide = (IVec<W>)_mm512_maskz_cvtepi8_epi32(0xffff, _mm_loadu_si128((const __m128i*)p));
  } else if constexpr (W == 8) {
    wide = (IVec<W>)_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p));
  } else {
    wide = (IVec<W>)_mm_cvtepi8_epi32(_mm_cvtsi32_si128(load<int32_t>(p)));
  }
#else
  using Shorts = typename VecOf<W>::S;
  const Shorts shorts = __builtin_convertvector(load<typename VecOf<W>::B>(p), Shorts);
  const IVec<W> wide = __builtin_convertvector(shorts, IVec<W>);
#endif
  return __builtin_convertvector(wide, Vec<W>);
}

// Loads half a vector from each of two places.
template <int W, int... L>
PS_INLINE Vec<W> join_lanes(Vec<W / 2> a, Vec<W / 2> b, std::integer_sequence<int, L...>) {
  return __builtin_shufflevector(a, b, L...);
}
template <int W>
PS_INLINE Vec<W> join(const void* a, const void* b) {
  return join_lanes<W>(load<Vec<W / 2>>(a), load<Vec<W / 2>>(b),
                       std::make_integer_sequence<int, W>{});
}

// A chunk is 2 * W consecutive elements of a row of head_dim, held as two vectors. The lane of an
// element depends on the dtype (bfloat16 is split into even and odd elements, one operation per
// vector), so both sides of a dot product must be loaded as chunks.
template <int W>
PS_INLINE void load_chunk(const float* p, Vec<W>& lo, Vec<W>& hi) {
  lo = load<Vec<W>>(p);
  hi = load<Vec<W>>(p + W);
}
template <int W>
PS_INLINE void load_chunk(const bfloat16* p, Vec<W>& lo, Vec<W>& hi) {
  const UVec<W> pairs = load<UVec<W>>(p);
  lo = (Vec<W>)(pairs << 16);
  hi = (Vec<W>)(pairs & 0xffff0000u);
}
template <int W>
PS_INLINE void load_chunk(const int8_t* p, Vec<W>& lo, Vec<W>& hi) {
  lo = widen_bytes<W>(p);
  hi = widen_bytes<W>(p + W);
}
template <int W>
PS_INLINE void store_chunk(float* p, Vec<W> lo, Vec<W> hi) {
  store(p, lo);
  store(p + W, hi);
}
template <int W>
PS_INLINE void store_chunk(bfloat16* p, Vec<W> lo, Vec<W> hi) {
  store(p, (round_to_bf16_bits<W>(lo) >> 16) | round_to_bf16_bits<W>(hi));
}

// Loads or stores W consecutive elements in order.
template <int W>
PS_INLINE Vec<W> load_row(const float* p) {
  return load<Vec<W>>(p);
}
template <int W>
PS_INLINE Vec<W> load_row(const bfloat16* p) {
  const typename VecOf<W>::H half = load<typename VecOf<W>::H>(p);
  return (Vec<W>)(__builtin_convertvector(half, UVec<W>) << 16);
}
template <int W>
PS_INLINE Vec<W> load_row(const int8_t* p) {
  return widen_bytes<W>(p);
}
template <int W>
PS_INLINE void store_row(float* p, Vec<W> v) {
  store(p, v);
}
template <int W>
PS_INLINE void store_row(bfloat16* p, Vec<W> v) {
  store(p, __builtin_convertvector(round_to_bf16_bits<W>(v) >> 16, typename VecOf<W>::H));
}
