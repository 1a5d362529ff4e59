// A step's batch as kernels use it: plain pointers. batch.h builds it from the ops' tensors.
#pragma once

#include <cstdint>

#include "sink_window.h"

namespace paged_stream {

// T tokens of B sequences. paged_stream/ops/batch.py documents each field.
template <class Int64, class Int32>
struct BatchOf {
  Int64* token_ids;        // [T]
  Int64* positions;        // [T]
  Int64* sink_positions;   // [T]
  Int64* slot_mapping;     // [T]
  Int32* block_table;      // [B, table_width], table_stride elements between rows
  Int32* query_start_loc;  // [B + 1]
  Int64* seq_lens;         // [B]
  Int32* num_sink_tokens;  // [B]
  Int32* window_size;      // [B]
  Int64* window_floor;     // [B]
  Int32* ring_blocks;      // [B]
  int64_t num_tokens, num_sequences, table_width, table_stride;

  PAGED_STREAM_HOST_DEVICE SinkWindow sink_window(int64_t sequence) const {
    return {num_sink_tokens[sequence], window_size[sequence], window_floor[sequence]};
  }

  PAGED_STREAM_HOST_DEVICE Int32* block_row(int64_t sequence) const {
    return block_table + sequence * table_stride;
  }
};

using Batch = BatchOf<const int64_t, const int32_t>;
using MutableBatch = BatchOf<int64_t, int32_t>;

}  // namespace paged_stream
