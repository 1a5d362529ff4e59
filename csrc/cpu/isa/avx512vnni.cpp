// Kernels for quantised weights with AVX-512's byte dot products (VNNI).

#if defined(__x86_64__)

#include <immintrin.h>

#include <cstdint>
#include <utility>

#include "isa/kernel_table.h"

#pragma GCC target( \
    "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,bmi2,f16c,prefer-vector-width=512")

namespace paged_stream {
namespace avx512vnni {

constexpr int kLanes = 16;
constexpr int kPrefetchBytes = 2048;

#include "kernels/simd.inl"

#include "kernels/linear_common.inl"

constexpr TileShape kQuantizedShape{
    .tall_rows = 12, .tall_panels = 1, .wide_rows = 4, .wide_panels = 4};

template <int W>
PS_INLINE IVec<W> dot4(IVec<W> sum, UVec<W> codes, UVec<W> input) {
  return (IVec<W>)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)codes, (__m512i)input);
}

template <int W>
PS_INLINE Vec<W> load_halves(const char* p) {
  return (Vec<W>)_mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256((const __m256i*)p));
}

template <int W>
PS_INLINE UVec<W> look_up(UVec<W> codes) {
  const __m512i table =
      _mm512_maskz_broadcast_i32x4(0xffff, _mm_loadu_si128((const __m128i*)kCodeTable));
  return (UVec<W>)_mm512_shuffle_epi8(table, (__m512i)codes);
}

#include "kernels/quantized_linear.inl"

}  // namespace avx512vnni

const QuantizedKernels kAvx512VnniKernels = avx512vnni::kQuantized;

}  // namespace paged_stream

#endif
