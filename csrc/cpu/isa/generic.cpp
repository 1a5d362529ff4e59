// Kernels for the compiler's default target: SSE2 on x86-64, NEON on ARM.

#include <cstdint>
#include <utility>

#include "isa/kernel_table.h"

namespace paged_stream {
namespace generic {

constexpr int kLanes = 4;
constexpr int kNumVectorRegisters = 16;
constexpr int kPanelVectors = 2;
constexpr int kPrefetchBytes = 1024;

#include "kernels/simd.inl"

#include "kernels/linear_common.inl"

constexpr TileShape kFloat32Shape{
    .tall_rows = 3, .tall_panels = 1, .wide_rows = 1, .wide_panels = 2};
constexpr TileShape kBFloat16Shape{
    .tall_rows = 3, .tall_panels = 1, .wide_rows = 1, .wide_panels = 2};
constexpr TileShape kQuantizedShape{
    .tall_rows = 1, .tall_panels = 1, .wide_rows = 1, .wide_panels = 1};

// Computes a * b + sum with one rounding, for a and b that come from bfloat16.
template <int W>
PS_INLINE Vec<W> multiply_add(Vec<W> a, Vec<W> b, Vec<W> sum) {
#if defined(__ARM_FEATURE_FMA)
  return a * b + sum;
#else
  // The product of 8 by 8 bits is exact in float64. So is its sum with 24 bits, unless one of the
  // two is too small to matter, even to a tie.
  using Wide = typename VecOf<W>::D;
  const Wide product = __builtin_convertvector(a, Wide) * __builtin_convertvector(b, Wide);
  return __builtin_convertvector(product + __builtin_convertvector(sum, Wide), Vec<W>);
#endif
}
#include "kernels/widened_pairs.inl"

template <int W>
PS_INLINE IVec<W> add_pair_products(IVec<W> sum, UVec<W> a, UVec<W> b) {
  const IVec<W> low = ((IVec<W>)(a << 16) >> 16) * ((IVec<W>)(b << 16) >> 16);
  return sum + low + ((IVec<W>)a >> 16) * ((IVec<W>)b >> 16);
}
#include "kernels/dot_pairs.inl"

// Converts float16 to float32 exactly, including subnormals. Infinities are not expected.
template <int W>
PS_INLINE Vec<W> load_halves(const char* p) {
  const typename VecOf<W>::H half = load<typename VecOf<W>::H>(p);
  const UVec<W> bits = __builtin_convertvector(half, UVec<W>);
  const Vec<W> magnitude = (Vec<W>)((bits & 0x7fffu) << 13) * 0x1p112f;
  return (Vec<W>)((UVec<W>)magnitude | ((bits & 0x8000u) << 16));
}

template <int W>
PS_INLINE UVec<W> look_up(UVec<W> codes) {
  uint8_t bytes[4 * W];
  store(bytes, codes);
  for (uint8_t& byte : bytes) byte = kCodeTable[byte];
  return load<UVec<W>>(bytes);
}

#include "kernels/kernels.inl"

}  // namespace generic

const Kernels kGenericKernels = generic::kKernels;
const QuantizedKernels kGenericQuantizedKernels = generic::kQuantized;

}  // namespace paged_stream
