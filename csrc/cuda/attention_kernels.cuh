// The kernels of paged_attention: which thread block handles which tile, and how splits are merged.
//
// Decoding has chunks of one token. Their keys are split over thread blocks so that a few sequences
// fill the device (split_count). Longer chunks are cut into tiles of rows, and a thread block
// processes all keys of its tile. The choice and the cuts depend on the sequence alone, so a row's
// result is bit-identical whatever else is in the batch.
#pragma once

#include "attention_float.cuh"
#include "attention_mma.cuh"

namespace paged_stream {

PAGED_STREAM_HOST_DEVICE constexpr int ceil_divide(int a, int b) { return (a + b - 1) / b; }

// The rows that one thread block of the split kernel or the merge handles. `tiles` tiles of
// max_rows rows cover one token's rows. Only with split_all may a chunk have more rows; the thread
// block then continues `stride` rows further on.
struct SplitRows {
  int kv_head;
  int first_row;
  int stride;
  int end;

  __device__ __forceinline__ SplitRows(const PagedAttentionArguments& in, int sequence, int index,
                                       int max_rows) {
    const int tiles = ceil_divide(in.group_size, max_rows);
    const int rows = rows_of_chunk(in, sequence);
    kv_head = index / tiles;
    first_row = index % tiles * max_rows;
    stride = tiles * max_rows;
    end = rows <= in.group_size || in.split_all ? rows : 0;
  }
};

// Returns the index of a split's first key. Splits differ by one key at most.
PAGED_STREAM_HOST_DEVICE inline int split_begin(int split, int num_splits, int num_keys) {
  return static_cast<int>(static_cast<int64_t>(num_keys) * split / num_splits);
}

// Grid: (max_splits, num_kv_heads * tiles, num_sequences). SharedBytes is a parameter so that the
// kernel's name tells it to tools that read binaries.
template <class Attention, int SharedBytes = Attention::kSharedBytes>
__global__ void __launch_bounds__(kAttentionThreads, Attention::kMinBlocks)
    attend_splits(const __grid_constant__ PagedAttentionArguments in) {
  const int split = static_cast<int>(blockIdx.x), sequence = static_cast<int>(blockIdx.z);
  const SplitRows rows(in, sequence, static_cast<int>(blockIdx.y), Attention::kRows);
  AttentionTile& tile = shared_tile();
  for (int row = rows.first_row; row < rows.end; row += rows.stride) {
    if (thread_index() == 0) tile = make_tile(in, sequence, row, Attention::kRows);
    sync_block();
    const int num_splits = split_count(in.group_size, tile.num_keys);
    if (num_splits > in.max_splits) trap();
    if (split < num_splits) {
      Attention::attend(in, tile, rows.kv_head, split_begin(split, num_splits, tile.num_keys),
                        split_begin(split + 1, num_splits, tile.num_keys), split, num_splits);
    }
    sync_block();
  }
}

// Merges the partial results of a row's splits, in order. Reads 4 * head_dim bytes of each and
// writes the row once. Grid: (num_kv_heads * tiles, num_sequences).
template <class Q, int MaxRows>
__global__ void __launch_bounds__(kAttentionThreads, 2)
    merge_splits(const __grid_constant__ PagedAttentionArguments in) {
  const int sequence = static_cast<int>(blockIdx.y);
  const SplitRows rows(in, sequence, static_cast<int>(blockIdx.x), MaxRows);
  const int pairs = in.head_dim / 2;
  for (int first_row = rows.first_row; first_row < rows.end; first_row += rows.stride) {
    const AttentionTile tile = make_tile(in, sequence, first_row, MaxRows);
    const int num_splits = split_count(in.group_size, tile.num_keys);
    if (num_splits == 1) continue;
    for (int item = thread_index(); item < tile.num_rows * pairs; item += kAttentionThreads) {
      const int row = item / pairs, dim = item % pairs * 2;
      const int head = rows.kv_head * in.group_size + tile.head_in_group(row);
      const int64_t part = part_index(in, tile, head, row, 0);
      RunningSoftmax all;
      for (int i = 0; i < num_splits; ++i) all.max = fmaxf(all.max, in.part_max[part + i]);
      float first = 0.0f, second = 0.0f;
#pragma unroll 4
      for (int i = 0; i < num_splits; ++i) {
        const float* acc = in.part_acc + (part + i) * in.head_dim + dim;
        const float weight = all.weight(in.part_max[part + i]);
        all.sum += weight * in.part_sum[part + i];
        first += weight * acc[0];
        second += weight * acc[1];
      }
      RowWriter<Q>(in, tile, rows.kv_head, row, 0, 1).write(dim, first, second, 1.0f / all.sum);
    }
  }
}

// Returns the grid index of a chunk's first tile. The host knows only T and B, so the grid has room
// for any division of T tokens into B chunks: the tiles of all earlier tokens, plus one per earlier
// sequence for a partly filled last tile.
PAGED_STREAM_HOST_DEVICE inline int first_place(int token, int sequence, int group_size,
                                                int max_rows) {
  return static_cast<int>(static_cast<int64_t>(token) * group_size / max_rows) + sequence;
}

// Grid: (first_place of the end of the batch, num_kv_heads). SharedBytes: see attend_splits.
template <class Attention, int SharedBytes = Attention::kSharedBytes>
__global__ void __launch_bounds__(kAttentionThreads, Attention::kMinBlocks)
    attend_chunks(const __grid_constant__ PagedAttentionArguments in) {
  // A chunk's last tiles have the most keys, so they start first.
  const int place = static_cast<int>(gridDim.x - 1 - blockIdx.x);
  const auto first_of = [&](int sequence) {
    return first_place(in.batch.query_start_loc[sequence], sequence, in.group_size,
                       Attention::kRows);
  };
  int sequence = 0, end = in.num_sequences;
  while (end - sequence > 1) {
    const int middle = (sequence + end) / 2;
    (first_of(middle) <= place ? sequence : end) = middle;
  }
  const int row = (place - first_of(sequence)) * Attention::kRows;
  const int num_rows = rows_of_chunk(in, sequence);
  if (row >= num_rows || num_rows <= in.group_size) return;
  AttentionTile& tile = shared_tile();
  if (thread_index() == 0) tile = make_tile(in, sequence, row, Attention::kRows);
  sync_block();
  Attention::attend(in, tile, static_cast<int>(blockIdx.y), 0, tile.num_keys, 0, 1);
}

}  // namespace paged_stream
