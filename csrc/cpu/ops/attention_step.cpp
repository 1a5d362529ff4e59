#include "ops/attention_step.h"

#include <algorithm>

#include "window_checks.h"

namespace paged_stream {
namespace {

// Checks that the table has every column the chunk reads, that no two live blocks share one, and
// that the cache can hold all of these blocks at once.
void check_columns(const Checker& check, const SequenceView& s, int64_t index, const Batch& batch,
                   const Tensor& k_cache) {
  const int64_t block_size = k_cache.size(2), num_blocks = k_cache.size(0);
  const int64_t last_block = (s.seq_len - 1) / block_size;
  const int64_t sinks = s.sink_window.num_sink_blocks(block_size);
  const int64_t first_seen = s.sink_window.window_start(s.seq_len - s.chunk) / block_size;
  const int64_t live = last_block - std::max(first_seen, sinks) + 1;
  check.require(live <= s.ring_blocks, "ring_blocks of sequence ", index, " must be at least ",
                live, " for its window and chunk, got ", s.ring_blocks);
  const int64_t columns = std::min(last_block + 1, sinks + s.ring_blocks);
  check.require(columns <= batch.table_width, "block_table must have at least ", columns,
                " columns for sequence ", index, ", got ", batch.table_width);
  const int64_t blocks = std::min(last_block + 1, sinks) + std::max<int64_t>(live, 0);
  check.require(blocks <= num_blocks, "k_cache must have at least the ", blocks,
                " blocks of sequence ", index, ", got ", num_blocks);
}

SequenceView read_sequence(const Checker& check, const Batch& batch, int64_t i,
                           const Tensor& k_cache) {
  const int32_t* starts = batch.query_start_loc;
  SequenceView s{};
  s.sink_window = batch.sink_window(i);
  s.seq_len = batch.seq_lens[i];
  s.first_token = starts[i];
  s.chunk = int64_t{starts[i + 1]} - starts[i];
  s.ring_blocks = batch.ring_blocks[i];
  s.block_row = batch.block_row(i);
  check.require(s.chunk >= 0, "query_start_loc must not decrease, got ", starts[i], " then ",
                starts[i + 1]);
  if (s.chunk == 0) return s;
  check.in_range(s.seq_len, s.chunk, kMaxPosition, "seq_lens[", i, "], with a chunk of ", s.chunk,
                 ",");
  check_window(check, i, s.sink_window, s.ring_blocks, s.seq_len - s.chunk);
  check_columns(check, s, i, batch, k_cache);
  return s;
}

}  // namespace

AttentionStep::AttentionStep(const Checker& check, const Batch& batch, int64_t num_tokens,
                             const Tensor& k_cache)
    : check_(check) {
  const int32_t* starts = batch.query_start_loc;
  const int32_t first = starts[0], last = starts[batch.num_sequences];
  check.require(first == 0 && last == num_tokens, "query_start_loc must run from 0 to ", num_tokens,
                ", got ", first, " to ", last);
  sequences_.reserve(batch.num_sequences);
  for (int64_t i = 0; i < batch.num_sequences; ++i) {
    sequences_.push_back(read_sequence(check, batch, i, k_cache));
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
