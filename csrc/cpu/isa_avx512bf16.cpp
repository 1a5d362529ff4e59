#if defined(__x86_64__)

#include <immintrin.h>

#include <cstdint>
#include <utility>

#include "kernels.h"

#pragma GCC target( \
    "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma,bmi2,prefer-vector-width=512")

namespace paged_stream {
namespace avx512bf16 {

constexpr int kLinearRows = 6;
constexpr int kLinearPanels = 4;
constexpr int kPrefetchBytes = 2048;

#include "simd.inl"

#include "linear.inl"

// One instruction multiplies both of each pair and adds them to the accumulator in float32.
struct NativeDot {
  static constexpr int kStep = 2;
  static constexpr int kLanes = 16;
  using Weight = __m512bh;
  using Input = __m512bh;
  static PS_INLINE Weight weight(const char* p) { return load<__m512bh>(p); }
  static PS_INLINE Input input(const bfloat16* x) {
    return (__m512bh)_mm512_set1_epi32(load<int>(x));
  }
  static PS_INLINE Vec<16> add(Vec<16> acc, Input x, Weight w) {
    return (Vec<16>)_mm512_dpbf16_ps((__m512)acc, x, w);
  }
};

}  // namespace avx512bf16

LinearFn avx512bf16_linear() { return avx512bf16::linear<avx512bf16::NativeDot, bfloat16>; }

}  // namespace paged_stream

#endif
