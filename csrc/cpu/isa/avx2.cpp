#if defined(__x86_64__)

#include <immintrin.h>

#include <cstdint>
#include <utility>

#include "isa/kernel_table.h"

#define PAGED_STREAM_PMOVSX  // for simd.inl, where the target's predefined macros are missing
#pragma GCC target("avx2,fma,bmi2,f16c")

namespace paged_stream {
namespace avx2 {

constexpr int kLanes = 8;
constexpr int kNumVectorRegisters = 16;
constexpr int kPanelVectors = 2;
constexpr int kPrefetchBytes = 1024;

#include "kernels/simd.inl"

#include "kernels/linear_common.inl"

constexpr TileShape kFloat32Shape{
    .tall_rows = 6, .tall_panels = 1, .wide_rows = 3, .wide_panels = 2};
constexpr TileShape kBFloat16Shape{
    .tall_rows = 6, .tall_panels = 1, .wide_rows = 3, .wide_panels = 2};
constexpr TileShape kQuantizedShape{
    .tall_rows = 3, .tall_panels = 1, .wide_rows = 1, .wide_panels = 2};

template <int W>
PS_INLINE Vec<W> multiply_add(Vec<W> a, Vec<W> b, Vec<W> sum) {
  return (Vec<W>)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)sum);
}
#include "kernels/widened_pairs.inl"

template <int W>
PS_INLINE IVec<W> add_pair_products(IVec<W> sum, UVec<W> a, UVec<W> b) {
  return sum + (IVec<W>)_mm256_madd_epi16((__m256i)a, (__m256i)b);
}
#include "kernels/dot_pairs.inl"

template <int W>
PS_INLINE Vec<W> load_halves(const char* p) {
  return (Vec<W>)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
}

template <int W>
PS_INLINE UVec<W> look_up(UVec<W> codes) {
  const __m256i table = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)kCodeTable));
  return (UVec<W>)_mm256_shuffle_epi8(table, (__m256i)codes);
}

#include "kernels/kernels.inl"

}  // namespace avx2

const Kernels kAvx2Kernels = avx2::kKernels;
const QuantizedKernels kAvx2QuantizedKernels = avx2::kQuantized;

}  // namespace paged_stream

#endif
