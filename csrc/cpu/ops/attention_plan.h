// Divides a batch into tiles of query rows and splits of keys. Pure host arithmetic.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "sink_window.h"

namespace paged_stream {

struct SequenceView {
  SinkWindow sink_window;
  int64_t seq_len;
  int64_t first_token;  // index of the chunk's first token in the batch
  int64_t chunk;
  int64_t ring_blocks;
  const int32_t* block_row;
};

// Consecutive tokens of one sequence, and the keys visible to any of them: positions [sink_begin,
// sink_end) for sink queries, then [window_begin, window_end) for plain ones. Together these are
// the tile's key list, which splits divide evenly.
struct Tile {
  const SequenceView* sequence;
  int64_t first_token;
  int64_t first_position;
  int num_tokens;
  int64_t sink_begin;
  int64_t sink_end;
  int64_t window_begin;
  int64_t window_end;
  int num_splits;
  int64_t split_len;
  int64_t first_part_row;  // index of its first row among the partial results
  int64_t first_counter;   // index among the tiles that are split

  int64_t num_sinks() const { return sink_end - sink_begin; }
  int64_t num_keys() const { return num_sinks() + window_end - window_begin; }
};

struct AttentionPlan {
  std::vector<Tile> tiles;
  std::vector<std::pair<int32_t, int32_t>> items;  // (tile, split); each runs once per kv head
  int64_t num_part_rows = 0;                       // per kv head
  int64_t num_counters = 0;
  int64_t work = 0;  // score computations per kv head
  int max_tile_tokens = 0;
};

// A sequence's division into tiles and splits depends on that sequence and the layer alone, so a
// stream's output does not depend on the rest of the batch, not even by rounding.
AttentionPlan plan_attention(const std::vector<SequenceView>& sequences, int group_size,
                             int64_t local_window);

}  // namespace paged_stream
