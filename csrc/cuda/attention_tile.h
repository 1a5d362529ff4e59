// The rows of queries that a thread block handles, the keys visible to them, and where those keys
// are. Plain arithmetic for host and device.
//
// The keys of a tile form a list: sink keys, then window keys, in order of position. Everything
// else is in indices into that list, which are 32-bit at any position of a stream.
#pragma once

#include <cstdint>

#include "attention_arguments.h"
#include "sink_window.h"

namespace paged_stream {

// A row's visible keys: [sink_begin, num_sinks) and [window_begin, end) of the list, below `end`.
struct VisibleKeys {
  int sink_begin;
  int window_begin;
  int end;
  int sink_place;  // the ALiBi distance of key i is the row's place - i
  int window_place;

  PAGED_STREAM_HOST_DEVICE bool sees(int key, int num_sinks) const {
    return key < end && key >= (key < num_sinks ? sink_begin : window_begin);
  }
  PAGED_STREAM_HOST_DEVICE int distance(int key, int num_sinks) const {
    return (key < num_sinks ? sink_place : window_place) - key;
  }
};

// Rows [first_row, first_row + num_rows) of a chunk. Row r is head r % group_size of the kv head's
// group and token r / group_size.
struct AttentionTile {
  SinkWindow window;
  const int32_t* block_row;
  int64_t chunk_position;  // of the chunk's first token
  int chunk_token;         // index of that token in the batch
  int sequence;
  int first_row;
  int num_rows;
  int group_size;
  int64_t local_window;

  int64_t sink_begin;    // position of the first sink key
  int64_t window_begin;  // position of the first window key
  int num_sinks;
  int num_keys;

  // Window keys start in the last of the sink columns, if they share one, and continue in the ring.
  int block_size;
  int first_offset;       // of the first window key in its block
  int first_sink_column;  // column of that block, if it is a sink column
  int num_sink_columns;   // sink columns that hold window keys
  int sink_columns;
  int ring_start;  // ring column of the first window block in the ring
  int ring_blocks;

  PAGED_STREAM_HOST_DEVICE int token(int row) const {
    return chunk_token + (first_row + row) / group_size;
  }
  PAGED_STREAM_HOST_DEVICE int head_in_group(int row) const {
    return (first_row + row) % group_size;
  }
  PAGED_STREAM_HOST_DEVICE int64_t position(int row) const {
    return chunk_position + (first_row + row) / group_size;
  }

  PAGED_STREAM_HOST_DEVICE VisibleKeys visible_keys(int row) const {
    if (row >= num_rows) return {0, 0, 0, 0, 0};
    const int64_t p = position(row);
    const int64_t sink_start = window.sink_start(p, local_window) - sink_begin;
    const int64_t window_start = window.window_start(p, local_window) - window_begin;
    // A sink token attends to no window keys.
    const bool is_sink = p < sink_begin + num_sinks;
    const int64_t window_place = p - window_begin + num_sinks;
    VisibleKeys v;
    v.sink_begin = static_cast<int>(sink_start < 0 ? 0 : sink_start);
    v.window_begin = num_sinks + static_cast<int>(window_start < 0 ? 0 : window_start);
    v.end = static_cast<int>(is_sink ? p - sink_begin : window_place) + 1;
    v.sink_place = static_cast<int>(window.sink_position(p) - sink_begin);
    v.window_place = static_cast<int>(window_place);
    return v;
  }

  // Returns the key's column of the block table; sets `offset` to the key's offset in that block.
  PAGED_STREAM_HOST_DEVICE int column(int key, int& offset) const {
    if (key < num_sinks) {
      const int position = static_cast<int>(sink_begin) + key;
      offset = position % block_size;
      return position / block_size;
    }
    const int from_first = first_offset + key - num_sinks;
    const int block = from_first / block_size;
    offset = from_first - block * block_size;
    if (block < num_sink_columns) return first_sink_column + block;
    return sink_columns + (ring_start + block - num_sink_columns) % ring_blocks;
  }
};

PAGED_STREAM_HOST_DEVICE inline int rows_of_chunk(const PagedAttentionArguments& in, int sequence) {
  const int32_t* const starts = in.batch.query_start_loc;
  return (starts[sequence + 1] - starts[sequence]) * in.group_size;
}

// Returns the tile of a chunk's rows [first_row, first_row + max_rows), at least one.
PAGED_STREAM_HOST_DEVICE inline AttentionTile make_tile(const PagedAttentionArguments& in,
                                                        int sequence, int first_row, int max_rows) {
  AttentionTile t;
  const int rows_left = rows_of_chunk(in, sequence) - first_row;
  const int chunk = (rows_left + first_row) / in.group_size;
  t.sequence = sequence;
  t.window = in.batch.sink_window(sequence);
  t.block_row = in.batch.block_row(sequence);
  t.chunk_position = in.batch.seq_lens[sequence] - chunk;
  t.chunk_token = in.batch.query_start_loc[sequence];
  t.first_row = first_row;
  t.num_rows = rows_left < max_rows ? rows_left : max_rows;
  t.group_size = in.group_size;
  t.local_window = in.local_window;

  // The first token's visible keys begin no later than any other token's.
  const int64_t first = t.position(0), end = t.position(t.num_rows - 1) + 1;
  const int64_t sink_end = t.window.num_sink_tokens < end ? t.window.num_sink_tokens : end;
  const int64_t sink_start = t.window.sink_start(first, in.local_window);
  const int64_t window_start = t.window.window_start(first, in.local_window);
  t.sink_begin = sink_start < sink_end ? sink_start : sink_end;
  t.window_begin = window_start < sink_end ? sink_end : window_start;
  t.num_sinks = static_cast<int>(sink_end - t.sink_begin);
  t.num_keys = t.num_sinks + static_cast<int>(end - t.window_begin);

  t.block_size = in.block_size;
  t.ring_blocks = in.batch.ring_blocks[sequence];
  t.sink_columns = static_cast<int>(t.window.num_sink_blocks(in.block_size));
  const int64_t first_block = t.window_begin / in.block_size;
  t.first_offset = static_cast<int>(t.window_begin - first_block * in.block_size);
  const bool in_sinks = first_block < t.sink_columns;
  t.first_sink_column = in_sinks ? static_cast<int>(first_block) : 0;
  t.num_sink_columns = in_sinks ? t.sink_columns - t.first_sink_column : 0;
  t.ring_start = in_sinks ? 0 : static_cast<int>((first_block - t.sink_columns) % t.ring_blocks);
  return t;
}

}  // namespace paged_stream
