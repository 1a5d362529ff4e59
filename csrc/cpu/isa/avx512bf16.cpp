// Kernels with AVX-512's dot products of bfloat16 pairs. The others are those of avx512.cpp.

#if defined(__x86_64__)

#include <immintrin.h>

#include <cstdint>
#include <utility>

#include "isa/kernel_table.h"

#pragma GCC target( \
    "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma,bmi2,f16c,prefer-vector-width=512")

namespace paged_stream {
namespace avx512bf16 {

constexpr int kLanes = 16;
constexpr int kNumVectorRegisters = 32;
constexpr int kPanelVectors = 4;
constexpr int kPrefetchBytes = 2048;

#include "kernels/simd.inl"

#include "kernels/linear_common.inl"

constexpr TileShape kBFloat16Shape{
    .tall_rows = 10, .tall_panels = 1, .wide_rows = 3, .wide_panels = 4};

// x is packed as [pair][row].
struct PairInput {
  float pair;  // only its bits matter
};

template <int W>
void pack_pairs(const PackRowsArgs& a) {
  PackRowsArgs pairs = a;
  pairs.columns /= 2;
  pack_rows<float, W>(pairs);
}

template <int W>
PS_INLINE Vec<W> dot_pairs(Vec<W> sum, UVec<W> a, UVec<W> b) {
  return (Vec<W>)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
}

template <int W, int Rows, int V>
PS_INLINE void add_pair(Vec<W> (&sums)[Rows][V], const PairInput* x, const UVec<W> (&pairs)[V]) {
  for (int r = 0; r < Rows; ++r) {
    const UVec<W> input = (UVec<W>)splat<W>(x[r].pair);
    for (int v = 0; v < V; ++v) sums[r][v] = dot_pairs<W>(sums[r][v], input, pairs[v]);
  }
}

#include "kernels/bfloat16_linear.inl"

#include "kernels/quantized.inl"

#include "kernels/attention_common.inl"

#include "kernels/attention_pairs.inl"

#include "kernels/attention_direct.inl"

#include "kernels/attention_packed.inl"

template <int Fixed>
const AttentionKernels* pairs_attention(int head_dim) {
  static const AttentionKernels kKernels = [&] {
    constexpr DType kType = DType::kBFloat16;
    AttentionKernels kernels = *kAvx512Kernels.attention(kType, kType, head_dim);
    kernels.pack_query = pack_query_pairs<kLanes>;
    kernels.attend_direct = attend_direct<kLanes, Fixed, Pairs>;
    kernels.attend_packed = attend_packed<kLanes, Fixed, Pairs>;
    return kernels;
  }();
  return &kKernels;
}

const AttentionKernels* choose_attention(DType dtype, DType cache_dtype, int head_dim) {
  const bool narrow = head_dim < 2 * kLanes;
  if (dtype != DType::kBFloat16 || cache_dtype != dtype || narrow) {
    return kAvx512Kernels.attention(dtype, cache_dtype, head_dim);
  }
  if (head_dim == 64) return pairs_attention<64 / (2 * kLanes)>(head_dim);
  if (head_dim == 128) return pairs_attention<128 / (2 * kLanes)>(head_dim);
  return pairs_attention<0>(head_dim);
}

}  // namespace avx512bf16

const AttentionKernels* attention_by_pairs(DType dtype, DType cache_dtype, int head_dim) {
  return avx512bf16::choose_attention(dtype, cache_dtype, head_dim);
}
const DenseKernels kAvx512Bf16Linear = avx512bf16::kBFloat16Linear;

}  // namespace paged_stream

#endif
