#include "ops/attention_plan.h"

#include <algorithm>

#include "kernels/attention.h"

namespace paged_stream {
namespace {

constexpr int64_t kTileRows = 96;
constexpr int64_t kSplitKeys = 512;
constexpr int64_t kSplitAlignment = 16;
// More work than any number of threads can share: counting stops there.
constexpr int64_t kMostWork = int64_t{1} << 40;

int64_t cdiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

Tile make_tile(const SequenceView& sequence, int64_t offset, int64_t num_tokens,
               int64_t local_window) {
  const SinkWindow& window = sequence.sink_window;
  Tile tile{};
  tile.sequence = &sequence;
  tile.first_token = sequence.first_token + offset;
  tile.first_position = sequence.seq_len - sequence.chunk + offset;
  tile.num_tokens = static_cast<int>(num_tokens);
  tile.window_end = tile.first_position + num_tokens;
  tile.sink_end = std::min(window.num_sink_tokens, tile.window_end);
  // The first token's visible keys begin no later than any other token's.
  tile.sink_begin = std::min(tile.sink_end, window.sink_start(tile.first_position, local_window));
  tile.window_begin =
      std::max(tile.sink_end, window.window_start(tile.first_position, local_window));
  tile.num_splits = 1;
  tile.split_len = tile.num_keys();
  return tile;
}

// Splits a tile's keys. Only for chunks of one tile: longer ones have enough parallel work, and
// partial results stay small next to the keys that they come from.
void split_keys(Tile& tile) {
  const int64_t num_keys = tile.num_keys();
  const int64_t wanted = std::max<int64_t>(1, (num_keys + kSplitKeys / 2) / kSplitKeys);
  tile.split_len = cdiv(cdiv(num_keys, wanted), kSplitAlignment) * kSplitAlignment;
  tile.num_splits = static_cast<int>(cdiv(num_keys, tile.split_len));
}

}  // namespace

AttentionPlan plan_attention(const std::vector<SequenceView>& sequences, int group_size,
                             int64_t local_window) {
  AttentionPlan plan;
  const int64_t max_tokens = std::max<int64_t>(1, kTileRows / group_size);
  for (const SequenceView& sequence : sequences) {
    const int64_t num_tiles = cdiv(sequence.chunk, max_tokens);
    for (int64_t i = 0; i < num_tiles; ++i) {
      const int64_t begin = sequence.chunk * i / num_tiles;
      const int64_t end = sequence.chunk * (i + 1) / num_tiles;
      Tile tile = make_tile(sequence, begin, end - begin, local_window);
      if (num_tiles == 1) split_keys(tile);
      if (tile.num_splits > 1) {
        tile.first_part_row = plan.num_part_rows;
        tile.first_counter = plan.num_counters++;
        plan.num_part_rows += tile.num_splits * padded_rows(tile.num_tokens * group_size);
      }
      const int32_t index = static_cast<int32_t>(plan.tiles.size());
      for (int split = 0; split < tile.num_splits; ++split) plan.items.emplace_back(index, split);
      plan.work = std::min(plan.work + tile.num_keys() * tile.num_tokens * group_size, kMostWork);
      plan.max_tile_tokens = std::max(plan.max_tile_tokens, tile.num_tokens);
      plan.tiles.push_back(tile);
    }
  }
  return plan;
}

}  // namespace paged_stream
