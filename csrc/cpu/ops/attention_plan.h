// Divides a batch into tiles of query rows and parts of keys. Pure host arithmetic.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "kernels/attention.h"
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

// Keys at positions [begin, end), in one part of kPartKeys positions; for sink queries or plain
// ones.
struct KeyPart {
  int64_t begin;
  int64_t end;
  bool is_sinks;
};

// Positions [begin, end), cut at multiples of kPartKeys.
struct KeyRange {
  int64_t begin;
  int64_t end;

  int64_t size() const { return end - begin; }
  int64_t num_parts() const {
    return begin < end ? (end - 1) / kPartKeys - begin / kPartKeys + 1 : 0;
  }
  KeyPart part(int64_t i, bool is_sinks) const {
    const int64_t first = (begin / kPartKeys + i) * kPartKeys;
    return {std::max(begin, first), std::min(end, first + kPartKeys), is_sinks};
  }
};

// Consecutive tokens of one sequence, and the keys visible to any of them: sinks for sink queries,
// then those of the window for plain ones.
struct Tile {
  const SequenceView* sequence;
  int64_t first_token;
  int64_t first_position;
  int num_tokens;
  KeyRange sinks;
  KeyRange window;
  int num_items;
  int64_t first_part_row;  // index of its first row among the partial results, if there are items
  int64_t index;           // among the tiles of several items

  int64_t num_keys() const { return sinks.size() + window.size(); }
  int64_t num_parts() const { return sinks.num_parts() + window.num_parts(); }
  KeyPart part(int64_t i) const {
    const int64_t before = sinks.num_parts();
    return i < before ? sinks.part(i, true) : window.part(i - before, false);
  }
};

// What one thread computes at once: some parts of a tile's keys, for one kv head.
struct AttentionItem {
  int32_t tile;
  int32_t first_part;
  int32_t end_part;
};

struct AttentionPlan {
  std::vector<Tile> tiles;
  std::vector<AttentionItem> items;  // each runs once per kv head
  int64_t num_part_rows = 0;         // per kv head
  int64_t num_cut_tiles = 0;         // into several items
  int64_t work = 0;                  // score computations per kv head
  int max_tile_tokens = 0;
};

// How rows and parts are put together does not change a bit of what comes out.
AttentionPlan plan_attention(const std::vector<SequenceView>& sequences, int group_size,
                             int64_t local_window);

}  // namespace paged_stream
