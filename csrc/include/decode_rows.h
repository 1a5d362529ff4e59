// Advances a decoding sequence without the scheduler: turns the sampled token into the next step's
// input. One thread handles one row.
#pragma once

#include <cstdint>

#include "batch_view.h"

namespace paged_stream {

// Returns the slot of a position whose block is `block_id`, or -1 if there is no block.
PAGED_STREAM_HOST_DEVICE inline int64_t slot_of(int64_t position, int32_t block_id,
                                                int64_t block_size) {
  return block_id < 0 ? -1 : block_id * block_size + position % block_size;
}

// The arguments of advance_decode, B rows each. The batch has one token per sequence.
struct DecodeRows {
  const int64_t* sampled;
  int64_t* generated;  // [B, max_generated]
  int64_t* num_generated;
  int64_t* num_left;
  const int64_t* stop_token_ids;  // [B, num_stops]
  MutableBatch batch;
  int64_t max_generated, num_stops, block_size;

  PAGED_STREAM_HOST_DEVICE bool is_running(int64_t row) const { return num_left[row] > 0; }

  PAGED_STREAM_HOST_DEVICE bool is_stop(int64_t row, int64_t token) const {
    const int64_t* const stops = stop_token_ids + row * num_stops;
    bool found = false;
    for (int64_t i = 0; i < num_stops; ++i) found |= stops[i] == token;
    return found;
  }

  // Returns the block table's column for the next position.
  PAGED_STREAM_HOST_DEVICE int64_t next_column(int64_t row) const {
    const int64_t logical_block = (batch.positions[row] + 1) / block_size;
    return batch.sink_window(row).column(logical_block, batch.ring_blocks[row], block_size);
  }

  // A row that is not running, or stops with this token, keeps its input, but with slot -1. Later
  // steps compute it again, and the result is discarded.
  PAGED_STREAM_HOST_DEVICE void advance(int64_t row) const {
    if (!is_running(row)) return;
    const int64_t token = sampled[row];
    generated[row * max_generated + num_generated[row]++] = token;
    num_left[row] = is_stop(row, token) ? 0 : num_left[row] - 1;
    if (!is_running(row)) {
      batch.slot_mapping[row] = -1;
      return;
    }
    const int64_t column = next_column(row), position = ++batch.positions[row];
    batch.token_ids[row] = token;
    batch.sink_positions[row] = batch.sink_window(row).sink_position(position);
    batch.seq_lens[row] = position + 1;
    batch.slot_mapping[row] = slot_of(position, batch.block_row(row)[column], block_size);
  }
};

}  // namespace paged_stream
