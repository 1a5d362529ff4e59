// The arguments of the attention kernels: plain pointers and numbers, passed by value.
#pragma once

#include <cstdint>

#include "batch_view.h"

namespace paged_stream {

constexpr int kMaxSplits = 32;

// Returns the number of splits for `num_keys` keys of a chunk of one token. It depends on the
// sequence's own list of keys, so a row's result does not depend on the rest of the batch. Partial
// results take 4 bytes per element of every row; the fewest keys of a split keep them near 3% of
// the bytes of the 16-bit keys and values that they come from.
PAGED_STREAM_HOST_DEVICE constexpr int split_count(int group_size, int64_t num_keys) {
  const int64_t splits = num_keys / (group_size <= 4 ? 256 : 512);
  return static_cast<int>(splits < 1 ? 1 : splits < kMaxSplits ? splits : kMaxSplits);
}

// Returns the most splits of a sequence whose keys fit in `columns` columns of the block table.
// Slots that hold no visible key may add some. Their thread blocks end at once.
inline int most_splits(int64_t columns, int64_t block_size, int group_size) {
  return split_count(group_size, columns * block_size);
}

struct PagedAttentionArguments {
  // [T, num_heads, head_dim]; strides between tokens, in elements.
  const void* query;
  const void* sink_query;
  void* out;
  int64_t query_stride;
  int64_t sink_query_stride;
  int num_heads;
  int num_kv_heads;
  int group_size;  // num_heads / num_kv_heads
  int head_dim;

  // [num_blocks, num_kv_heads, block_size, row_bytes]
  const uint8_t* k_cache;
  const uint8_t* v_cache;
  int64_t block_stride;  // bytes
  int num_blocks;
  int block_size;
  int row_bytes;

  Batch batch;
  int num_sequences;  // B

  float score_scale;          // 1 / sqrt(head_dim), usually
  const float* alibi_slopes;  // or null
  float softcap;              // or 0
  int64_t local_window;       // or kNoLocalWindow

  // If false, only chunks of one token are split, and a row's place among the partial results is
  // its sequence. If true, all chunks are split, and its place is its token.
  bool split_all;
  int max_splits;
  float* part_acc;  // [places, num_heads, max_splits, head_dim], not yet divided by part_sum
  float* part_max;  // [places, num_heads, max_splits], in the log2 domain
  float* part_sum;  // [places, num_heads, max_splits], sums of weights 2^(score - part_max)
};

}  // namespace paged_stream
