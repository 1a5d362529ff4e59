// Advances a decoding sequence without the scheduler: turns the sampled token into the next step's
// input. One thread handles one row.
#pragma once

#include <cstdint>

#include "batch_view.h"
#include "value_limits.h"

namespace paged_stream {

// Returns the slot of a position whose block is `block_id`, or -1 if there is no block.
PAGED_STREAM_HOST_DEVICE inline int64_t slot_of(int64_t position, int32_t block_id,
                                                int64_t block_size) {
  return block_id < 0 ? -1 : block_id * block_size + position % block_size;
}

// What a running row becomes. With num_left 0 only its slot changes, to -1. A negative token stands
// for none: the row ends.
struct NextInput {
  int64_t token;
  int64_t count;  // of the row's tokens in `generated` so far
  int64_t num_left, position, sink_position, slot;
};

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

  // Whether `generated` has room for the row's token.
  PAGED_STREAM_HOST_DEVICE bool has_room(int64_t row) const {
    return num_generated[row] >= 0 && num_generated[row] < max_generated;
  }

  // Whether the arithmetic of next_column works on the row's numbers.
  PAGED_STREAM_HOST_DEVICE bool has_valid_window(int64_t row) const {
    return batch.positions[row] >= 0 && batch.positions[row] < kMaxPosition &&
           batch.num_sink_tokens[row] >= 0 && batch.ring_blocks[row] >= 1;
  }

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

  // Returns what a running row becomes. The row must have been checked. Reads only.
  PAGED_STREAM_HOST_DEVICE NextInput next(int64_t row) const {
    NextInput input{};
    input.token = sampled[row];
    input.count = num_generated[row];
    const bool ends = input.token < 0 || is_stop(row, input.token);
    input.num_left = ends ? 0 : num_left[row] - 1;
    input.slot = -1;
    if (input.num_left == 0) return input;
    input.position = batch.positions[row] + 1;
    input.sink_position = batch.sink_window(row).sink_position(input.position);
    input.slot = slot_of(input.position, batch.block_row(row)[next_column(row)], block_size);
    return input;
  }

  // Writes a running row. A row that stops here keeps its input, but with slot -1. Later steps
  // compute it again, and the result is discarded.
  PAGED_STREAM_HOST_DEVICE void write(int64_t row, const NextInput& input) const {
    generated[row * max_generated + input.count] = input.token;
    num_generated[row] = input.count + 1;
    num_left[row] = input.num_left;
    batch.slot_mapping[row] = input.slot;
    if (input.num_left == 0) return;
    batch.token_ids[row] = input.token;
    batch.positions[row] = input.position;
    batch.sink_positions[row] = input.sink_position;
    batch.seq_lens[row] = input.position + 1;
  }
};

}  // namespace paged_stream
