// Launches the kernels of paged_attention for one query dtype.
#pragma once

#include "attention_kernels.cuh"
#include "launch.cuh"
#include "number_types.h"

namespace paged_stream {

// Of a thread block on sm_86, sm_89 and sm_120. Other GPUs have 163 KiB or more.
constexpr int kMostSharedBytes = 99 * 1024;

template <class Attention>
void launch_splits(const PagedAttentionArguments& in, Stream stream) {
  const unsigned tiles = in.num_kv_heads * ceil_divide(in.group_size, Attention::kRows);
  const dim3 grid(in.max_splits, tiles, in.num_sequences);
  static_assert(Attention::kSharedBytes <= kMostSharedBytes);
  launch(attend_splits<Attention>, grid, kAttentionThreads, Attention::kSharedBytes, stream, in);
}

template <class Q, int MaxRows>
void launch_merge(const PagedAttentionArguments& in, Stream stream) {
  if (in.max_splits == 1) return;
  const dim3 grid(in.num_kv_heads * ceil_divide(in.group_size, MaxRows), in.num_sequences);
  launch(merge_splits<Q, MaxRows>, grid, kAttentionThreads, 0, stream, in);
}

template <class Attention>
void launch_chunks(const PagedAttentionArguments& in, int num_tokens, Stream stream) {
  const int places = first_place(num_tokens, in.num_sequences, in.group_size, Attention::kRows);
  const dim3 grid(places, in.num_kv_heads);
  static_assert(Attention::kSharedBytes <= kMostSharedBytes);
  launch(attend_chunks<Attention>, grid, kAttentionThreads, Attention::kSharedBytes, stream, in);
}

template <class Split, class Chunk, class Q>
void launch_kernels(const PagedAttentionArguments& in, int num_tokens, Stream stream) {
  launch_splits<Split>(in, stream);
  launch_merge<Q, Split::kRows>(in, stream);
  if (!in.split_all) launch_chunks<Chunk>(in, num_tokens, stream);
}

// Calls run(std::integral_constant<int, Dim>()) with the smallest Dim that head_dim fits.
template <class Run>
void with_padded_dim(int head_dim, const Run& run) {
  if (head_dim <= 64) return run(std::integral_constant<int, 64>());
  if (head_dim <= 96) return run(std::integral_constant<int, 96>());
  if (head_dim <= 128) return run(std::integral_constant<int, 128>());
  run(std::integral_constant<int, 256>());
}

// Q: element type of queries. The cache holds Q, int8 or float8.
template <class Q>
void launch_attention(DType cache, const PagedAttentionArguments& in, int num_tokens,
                      Stream stream) {
  const auto run = [&](auto element, auto dim) {
    using C = decltype(element);
    if constexpr (std::is_same_v<Q, float>) {
      using Attention = FloatAttention<C, dim == 96 ? 128 : dim>;
      launch_kernels<Attention, Attention, Q>(in, num_tokens, stream);
    } else {
      launch_kernels<MmaSplit<Q, C, dim>, MmaChunk<Q, C, dim>, Q>(in, num_tokens, stream);
    }
  };
  with_padded_dim(in.head_dim, [&](auto dim) {
    if (cache == DType::kInt8) return run(int8_t(), dim);
    if (cache == DType::kFloat8) return run(float8_e4m3(), dim);
    run(Q(), dim);
  });
}

}  // namespace paged_stream
