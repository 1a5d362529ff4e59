// Kernels for quantised weights with AVX2's byte dot products (AVX-VNNI: laptops without AVX-512).

#if defined(__x86_64__)

#include <immintrin.h>

#include <cstdint>
#include <utility>

#include "isa/kernel_table.h"

#pragma GCC target("avxvnni,avx2,fma,bmi2,f16c")

namespace paged_stream {
namespace avxvnni {

constexpr int kLanes = 8;
constexpr int kPrefetchBytes = 1024;

#include "kernels/simd.inl"

#include "kernels/linear_common.inl"

constexpr TileShape kQuantizedShape{
    .tall_rows = 3, .tall_panels = 1, .wide_rows = 1, .wide_panels = 2};

template <int W>
PS_INLINE IVec<W> dot4(IVec<W> sum, UVec<W> codes, UVec<W> input) {
  return (IVec<W>)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)codes, (__m256i)input);
}

template <int W>
PS_INLINE Vec<W> load_halves(const char* p) {
  return (Vec<W>)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
}

template <int W>
PS_INLINE UVec<W> look_up(UVec<W> codes) {
  const __m256i table = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)kCodeTable));
  return (UVec<W>)_mm256_shuffle_epi8(table, (__m256i)codes);
}

#include "kernels/quantized_linear.inl"

}  // namespace avxvnni

const QuantizedKernels kAvxVnniKernels = avxvnni::kQuantized;

}  // namespace paged_stream

#endif
