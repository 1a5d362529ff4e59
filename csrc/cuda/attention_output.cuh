// Where a tile's result goes: the output, or the partial results if its keys are split.
#pragma once

#include <type_traits>

#include "attention_tile.h"
#include "device.cuh"

namespace paged_stream {

// Returns the index of a row's partial result for one split.
__device__ __forceinline__ int64_t part_index(const PagedAttentionArguments& in,
                                              const AttentionTile& tile, int head, int row,
                                              int split) {
  const int64_t place = in.split_all ? tile.token(row) : tile.sequence;
  return (place * in.num_heads + head) * in.max_splits + split;
}

// Stores two neighbouring elements of an output row, at an even dimension.
template <class Q>
__device__ __forceinline__ void store_pair(Q* out, float first, float second) {
  if constexpr (std::is_same_v<Q, float>) {
    out[0] = first;
    out[1] = second;
  } else {
    *reinterpret_cast<uint32_t*>(out) = pack_pair<Q>(first, second);
  }
}

// Writes a thread block's result for one row, two dimensions at a time.
template <class Q>
class RowWriter {
 public:
  // row: index in the tile. num_splits: 1 if the keys are not split.
  __device__ __forceinline__ RowWriter(const PagedAttentionArguments& in, const AttentionTile& tile,
                                       int kv_head, int row, int split, int num_splits)
      : is_part_(num_splits > 1) {
    const int head = kv_head * in.group_size + tile.head_in_group(row);
    if (is_part_) {
      part_ = part_index(in, tile, head, row, split);
      out_ = in.part_acc + part_ * in.head_dim;
    } else {
      const int64_t index = static_cast<int64_t>(tile.token(row)) * in.num_heads + head;
      out_ = static_cast<Q*>(in.out) + index * in.head_dim;
    }
  }

  // Writes the weighted sums of values at `dim` (even) and dim + 1. factor: 1 / sum of the weights.
  __device__ __forceinline__ void write(int dim, float first, float second, float factor) const {
    if (is_part_) {
      store_pair(static_cast<float*>(out_) + dim, first, second);
    } else {
      store_pair(static_cast<Q*>(out_) + dim, first * factor, second * factor);
    }
  }

  // Called by one thread per row.
  __device__ __forceinline__ void write_softmax(const PagedAttentionArguments& in, float max,
                                                float sum) const {
    if (!is_part_) return;
    in.part_max[part_] = max;
    in.part_sum[part_] = sum;
  }

 private:
  bool is_part_;
  int64_t part_ = 0;
  void* out_;
};

}  // namespace paged_stream
