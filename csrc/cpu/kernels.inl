// All kernels of one instruction set. The including file defines kLanes, kNumVectorRegisters,
// kPanelVectors and kPrefetchBytes in a namespace of its own, includes simd.inl and
// linear_common.inl there, defines kDenseShape, kQuantizedShape and dot4, and includes this.

#include "rotary.inl"

#include "attention_common.inl"

#include "attention_direct.inl"

#include "attention_packed.inl"

#include "elementwise.inl"

#include "linear.inl"

#include "quantized_linear.inl"

// Fixed: number of chunks in head_dim when known, else 0.
template <int W, int Fixed, class T>
const AttentionKernels* attention_table() {
  static constexpr AttentionKernels table = {
      padded_dim<W>, pack_query<W, T>,   attend_direct<W, Fixed, T>, attend_packed<W, Fixed, T>,
      merge<W>,      write_output<W, T>,
  };
  return &table;
}

// A chunk of 2 * W elements must fit in a row: narrow heads take narrower vectors.
template <int W, class T>
const AttentionKernels* narrow_attention(int head_dim) {
  if constexpr (W > 4) {
    if (head_dim < 2 * W) return narrow_attention<W / 2, T>(head_dim);
  }
  return attention_table<W, 0, T>();
}

template <class T>
const AttentionKernels* choose_attention(int head_dim) {
  if (head_dim == 64) return attention_table<kLanes, 64 / (2 * kLanes), T>();
  if (head_dim == 128) return attention_table<kLanes, 128 / (2 * kLanes), T>();
  return narrow_attention<kLanes, T>(head_dim);
}

inline const AttentionKernels* choose_attention(DType dtype, int head_dim) {
  return dtype == DType::kFloat32 ? choose_attention<float>(head_dim)
                                  : choose_attention<bfloat16>(head_dim);
}

constexpr Kernels kKernels = {
    {rotate<float>, rotate<bfloat16>},
    {rms_norm<float>, rms_norm<bfloat16>},
    {silu_and_mul<float>, silu_and_mul<bfloat16>},
    choose_attention,
    {linear<float, kLanes>, linear<bfloat16, kLanes>},
    {pack_rows<float, kLanes>, pack_rows<bfloat16, kLanes>},
    kDenseShape.tall_rows,
};
