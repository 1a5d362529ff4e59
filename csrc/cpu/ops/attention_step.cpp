#include "ops/attention_step.h"

#include <algorithm>

namespace paged_stream {
namespace {

// Checks that the table has every column the chunk reads, and that no two live blocks share one.
void check_columns(const Checker& check, const SequenceView& s, int64_t index, int64_t block_size,
                   int64_t width) {
  const int64_t last_block = (s.seq_len - 1) / block_size;
  const int64_t sinks = s.sink_window.num_sink_blocks(block_size);
  const int64_t first_seen = s.sink_window.window_start(s.seq_len - s.chunk) / block_size;
  const int64_t live = last_block - std::max(first_seen, sinks) + 1;
  check.require(live <= s.ring_blocks, "ring_blocks of sequence ", index, " must be at least ",
                live, " for its window and chunk, got ", s.ring_blocks);
  const int64_t columns = std::min(last_block + 1, sinks + s.ring_blocks);
  check.require(columns <= width, "block_table must have at least ", columns,
                " columns for sequence ", index, ", got ", width);
}

void check_floor(const Checker& check, const SequenceView& s, int64_t index) {
  const SinkWindow& w = s.sink_window;
  if (w.window_floor == 0) return;
  check.require(!w.is_full(), "sequence ", index,
                " has full attention, so window_floor must be 0, got ", w.window_floor);
  const int64_t first_query = s.seq_len - s.chunk;
  check.require(w.window_floor >= w.num_sink_tokens && w.window_floor <= first_query,
                "window_floor of sequence ", index, " must be 0, or at least ", w.num_sink_tokens,
                " and at most its first query's position ", first_query, ", got ", w.window_floor);
}

void check_window(const Checker& check, const SequenceView& s, int64_t index) {
  const SinkWindow& w = s.sink_window;
  check.require(w.window_size >= 1 && w.num_sink_tokens >= 0, "sequence ", index,
                " must have num_sink_tokens >= 0 and window_size >= 1, got ", w.num_sink_tokens,
                " and ", w.window_size);
  check.require(!w.is_full() || w.num_sink_tokens == 0, "sequence ", index,
                " has full attention, so num_sink_tokens must be 0, got ", w.num_sink_tokens);
  check_floor(check, s, index);
}

SequenceView read_sequence(const Checker& check, const Batch& batch, int64_t i,
                           int64_t block_size) {
  const int32_t* starts = batch.query_start_loc;
  SequenceView s{};
  s.sink_window = batch.sink_window(i);
  s.seq_len = batch.seq_lens[i];
  s.first_token = starts[i];
  s.chunk = starts[i + 1] - starts[i];
  s.ring_blocks = batch.ring_blocks[i];
  s.block_row = batch.block_row(i);
  check.require(s.chunk >= 0, "query_start_loc must not decrease, got ", starts[i], " then ",
                starts[i + 1]);
  if (s.chunk == 0) return s;
  check.require(s.seq_len >= s.chunk, "seq_lens[", i, "] must be at least the chunk's length ",
                s.chunk, ", got ", s.seq_len);
  check_window(check, s, i);
  check_columns(check, s, i, block_size, batch.table_width);
  return s;
}

}  // namespace

AttentionStep::AttentionStep(const Checker& check, const Batch& batch, int64_t num_tokens,
                             int64_t block_size) {
  const int32_t* starts = batch.query_start_loc;
  const int32_t first = starts[0], last = starts[batch.num_sequences];
  check.require(first == 0 && last == num_tokens, "query_start_loc must run from 0 to ", num_tokens,
                ", got ", first, " to ", last);
  sequences_.reserve(batch.num_sequences);
  for (int64_t i = 0; i < batch.num_sequences; ++i) {
    sequences_.push_back(read_sequence(check, batch, i, block_size));
  }
}

const AttentionPlan& AttentionStep::plan(int group_size, int64_t local_window) {
  for (const Cut& cut : cuts_) {
    if (cut.group_size == group_size && cut.local_window == local_window) return cut.plan;
  }
  cuts_.push_back({group_size, local_window, plan_attention(sequences_, group_size, local_window)});
  return cuts_.back().plan;
}

}  // namespace paged_stream
