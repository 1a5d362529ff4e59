#if defined(__x86_64__)

#include <immintrin.h>

#include <cstdint>
#include <utility>

#include "isa/kernel_table.h"

#define PAGED_STREAM_PMOVSX  // for simd.inl, where the target's predefined macros are missing
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,bmi2,f16c,prefer-vector-width=512")

namespace paged_stream {
namespace avx512 {

constexpr int kLanes = 16;
constexpr int kNumVectorRegisters = 32;
constexpr int kPanelVectors = 4;
constexpr int kPrefetchBytes = 2048;

#include "kernels/simd.inl"

#include "kernels/linear_common.inl"

constexpr TileShape kFloat32Shape{
    .tall_rows = 12, .tall_panels = 2, .wide_rows = 6, .wide_panels = 4};
constexpr TileShape kBFloat16Shape{
    .tall_rows = 6, .tall_panels = 2, .wide_rows = 6, .wide_panels = 4};
constexpr TileShape kQuantizedShape{
    .tall_rows = 8, .tall_panels = 1, .wide_rows = 2, .wide_panels = 4};

template <int W>
PS_INLINE Vec<W> multiply_add(Vec<W> a, Vec<W> b, Vec<W> sum) {
  return (Vec<W>)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)sum);
}
#include "kernels/widened_pairs.inl"

template <int W>
PS_INLINE IVec<W> add_pair_products(IVec<W> sum, UVec<W> a, UVec<W> b) {
  return sum + (IVec<W>)_mm512_madd_epi16((__m512i)a, (__m512i)b);
}
#include "kernels/dot_pairs.inl"

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

#include "kernels/kernels.inl"

}  // namespace avx512

const Kernels kAvx512Kernels = avx512::kKernels;
const QuantizedKernels kAvx512QuantizedKernels = avx512::kQuantized;

}  // namespace paged_stream

#endif
