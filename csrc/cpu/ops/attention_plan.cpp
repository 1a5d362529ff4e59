#include "ops/attention_plan.h"

namespace paged_stream {
namespace {

constexpr int64_t kTileRows = 96;
constexpr int64_t kMaxItemKeys = kPartKeys * 5 / 4;
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
  tile.window.end = tile.first_position + num_tokens;
  tile.sinks.end = std::min(window.num_sink_tokens, tile.window.end);
  // The first token's visible keys begin no later than any other token's.
  tile.sinks.begin = std::min(tile.sinks.end, window.sink_start(tile.first_position, local_window));
  tile.window.begin =
      std::max(tile.sinks.end, window.window_start(tile.first_position, local_window));
  return tile;
}

// Adds a tile's items. Only chunks of one tile are cut: longer ones have enough parallel work, and
// partial results stay small next to the keys that they come from.
int add_items(std::vector<AttentionItem>& items, const Tile& tile, int32_t index, bool is_cut) {
  const size_t before = items.size();
  const auto num_parts = static_cast<int32_t>(tile.num_parts());
  AttentionItem item{index, 0, 0};
  for (int64_t keys = 0; item.end_part < num_parts; ++item.end_part) {
    const KeyPart part = tile.part(item.end_part);
    const int64_t size = part.end - part.begin;
    if (is_cut && keys > 0 && keys + size > kMaxItemKeys) {
      items.push_back(item);
      item.first_part = item.end_part;
      keys = 0;
    }
    keys += size;
  }
  items.push_back(item);
  return static_cast<int>(items.size() - before);
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
      const auto index = static_cast<int32_t>(plan.tiles.size());
      tile.num_items = add_items(plan.items, tile, index, num_tiles == 1);
      if (tile.num_items > 1) {
        tile.first_part_row = plan.num_part_rows;
        tile.index = plan.num_cut_tiles++;
        plan.num_part_rows += tile.num_parts() * padded_rows(tile.num_tokens * group_size);
      }
      plan.work = std::min(plan.work + tile.num_keys() * tile.num_tokens * group_size, kMostWork);
      plan.max_tile_tokens = std::max(plan.max_tile_tokens, tile.num_tokens);
      plan.tiles.push_back(tile);
    }
  }
  return plan;
}

}  // namespace paged_stream
