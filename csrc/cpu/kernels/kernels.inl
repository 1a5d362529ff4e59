// All kernels of one instruction set. The including file defines kLanes, kNumVectorRegisters,
// kPanelVectors and kPrefetchBytes in a namespace of its own, includes simd.inl and
// linear_common.inl there, defines kFloat32Shape, kQuantizedShape, dot4 and what
// bfloat16_linear.inl asks for, and includes this.

#include "kernels/quantized.inl"

#include "kernels/rotary.inl"

#include "kernels/attention_common.inl"

#include "kernels/attention_direct.inl"

#include "kernels/attention_packed.inl"

#include "kernels/elementwise.inl"

#include "kernels/low_rank.inl"

#include "kernels/linear.inl"

#include "kernels/bfloat16_linear.inl"

#include "kernels/quantized_linear.inl"

#include "kernels/sampling_math.inl"

#include "kernels/sampling.inl"

// Q: element type of queries and outputs. T: element type of the cache. Fixed: number of chunks in
// head_dim if known, otherwise 0.
template <int W, int Fixed, class Q, class T>
const AttentionKernels* attention_table() {
  static constexpr AttentionKernels table = {
      padded_dim<W>,
      pack_query<W, Q, T>,
      attend_direct<W, Fixed, Widened<T>>,
      attend_packed<W, Fixed, Widened<T>>,
      merge<W>,
      write_output<W, Q, T>,
  };
  return &table;
}

// A chunk of 2 * W elements must fit in a row, so narrow heads use narrower vectors.
template <int W, class Q, class T>
const AttentionKernels* narrow_attention(int head_dim) {
  if constexpr (W > 4) {
    if (head_dim < 2 * W) return narrow_attention<W / 2, Q, T>(head_dim);
  }
  return attention_table<W, 0, Q, T>();
}

template <class Q, class T>
const AttentionKernels* choose_attention(int head_dim) {
  if (head_dim == 64) return attention_table<kLanes, 64 / (2 * kLanes), Q, T>();
  if (head_dim == 128) return attention_table<kLanes, 128 / (2 * kLanes), Q, T>();
  return narrow_attention<kLanes, Q, T>(head_dim);
}

template <class Q>
const AttentionKernels* choose_attention(DType cache_dtype, int head_dim) {
  return cache_dtype == DType::kInt8 ? choose_attention<Q, int8_t>(head_dim)
                                     : choose_attention<Q, Q>(head_dim);
}

inline const AttentionKernels* choose_attention(DType dtype, DType cache_dtype, int head_dim) {
  return dtype == DType::kFloat32 ? choose_attention<float>(cache_dtype, head_dim)
                                  : choose_attention<bfloat16>(cache_dtype, head_dim);
}

inline RotateFn choose_rotate(DType from, DType to) {
  if (to == DType::kFloat32) return rotate<float>;
  if (to == DType::kBFloat16) return rotate<bfloat16>;
  if (from == DType::kFloat32) return rotate_quantized<float>;
  if (from == DType::kBFloat16) return rotate_quantized<bfloat16>;
  return rotate_quantized<int8_t>;
}

constexpr Kernels kKernels = {
    choose_rotate,
    {rms_norm<float>, rms_norm<bfloat16>},
    {silu_and_mul<float>, silu_and_mul<bfloat16>},
    {add_low_rank<float>, add_low_rank<bfloat16>},
    choose_attention,
    {kFloat32Linear, kBFloat16Linear},
    tile_maxima,
    pick_token,
};
