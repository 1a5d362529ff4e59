// paged_attention on the CPU: checks the arguments and hands them on as plain pointers.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "dtype.h"
#include "isa/kernel_table.h"
#include "ops/attention_plan.h"
#include "ops/attention_run.h"
#include "ops/paged_attention.h"

namespace paged_stream {
namespace {

constexpr AttentionChecker kCheck;

// Every column that the sequence's chunk reads must exist, and no two of its live blocks share one.
void check_columns(const SequenceView& s, int64_t index, int64_t block_size, int64_t width) {
  const int64_t last_block = (s.seq_len - 1) / block_size;
  const int64_t sinks = s.sink_window.num_sink_blocks(block_size);
  const int64_t first_seen = s.sink_window.window_start(s.seq_len - s.chunk) / block_size;
  const int64_t live = last_block - std::max(first_seen, sinks) + 1;
  STD_TORCH_CHECK(live <= s.ring_blocks, "paged_attention: ring_blocks of sequence ", index,
                  " must be at least ", live, " for its window and chunk, got ", s.ring_blocks);
  const int64_t columns = std::min(last_block + 1, sinks + s.ring_blocks);
  STD_TORCH_CHECK(columns <= width, "paged_attention: block_table must have at least ", columns,
                  " columns for sequence ", index, ", got ", width);
}

void check_floor(const SequenceView& s, int64_t index) {
  const SinkWindow& w = s.sink_window;
  if (w.window_floor == 0) return;
  STD_TORCH_CHECK(!w.is_full(), "paged_attention: sequence ", index,
                  " has full attention, so window_floor must be 0, got ", w.window_floor);
  const int64_t first_query = s.seq_len - s.chunk;
  STD_TORCH_CHECK(w.window_floor >= w.num_sink_tokens && w.window_floor <= first_query,
                  "paged_attention: window_floor of sequence ", index, " must be 0, or at least ",
                  w.num_sink_tokens, " and at most its first query's position ", first_query,
                  ", got ", w.window_floor);
}

SequenceView read_sequence(const AttentionBatch& batch, int64_t i, int64_t block_size) {
  const int32_t* starts = batch.query_start_loc.const_data_ptr<int32_t>();
  SequenceView s{};
  s.sink_window = {batch.num_sink_tokens.const_data_ptr<int32_t>()[i],
                   batch.window_size.const_data_ptr<int32_t>()[i],
                   batch.window_floor.const_data_ptr<int64_t>()[i]};
  s.seq_len = batch.seq_lens.const_data_ptr<int64_t>()[i];
  s.first_token = starts[i];
  s.chunk = starts[i + 1] - starts[i];
  s.ring_blocks = batch.ring_blocks.const_data_ptr<int32_t>()[i];
  s.block_row = batch.block_table.const_data_ptr<int32_t>() + i * batch.block_table.stride(0);
  STD_TORCH_CHECK(s.chunk >= 0, "paged_attention: query_start_loc must not decrease, got ",
                  starts[i], " then ", starts[i + 1]);
  if (s.chunk == 0) return s;
  STD_TORCH_CHECK(s.seq_len >= s.chunk, "paged_attention: seq_lens[", i,
                  "] must be at least the chunk's length ", s.chunk, ", got ", s.seq_len);
  const SinkWindow& w = s.sink_window;
  STD_TORCH_CHECK(w.window_size >= 1 && w.num_sink_tokens >= 0, "paged_attention: sequence ", i,
                  " must have num_sink_tokens >= 0 and window_size >= 1, got ", w.num_sink_tokens,
                  " and ", w.window_size);
  STD_TORCH_CHECK(!w.is_full() || w.num_sink_tokens == 0, "paged_attention: sequence ", i,
                  " has full attention, so num_sink_tokens must be 0, got ", w.num_sink_tokens);
  check_floor(s, i);
  check_columns(s, i, block_size, batch.block_table.size(1));
  return s;
}

std::vector<SequenceView> read_batch(const AttentionBatch& batch, int64_t num_tokens,
                                     int64_t block_size) {
  const int64_t num_sequences = batch.block_table.size(0);
  const int32_t* starts = batch.query_start_loc.const_data_ptr<int32_t>();
  STD_TORCH_CHECK(starts[0] == 0 && starts[num_sequences] == num_tokens,
                  "paged_attention: query_start_loc must run from 0 to ", num_tokens, ", got ",
                  starts[0], " to ", starts[num_sequences]);
  std::vector<SequenceView> sequences;
  sequences.reserve(num_sequences);
  for (int64_t i = 0; i < num_sequences; ++i) {
    sequences.push_back(read_sequence(batch, i, block_size));
  }
  return sequences;
}

Tensor paged_attention(const Tensor& query, const std::optional<Tensor>& sink_query,
                       const Tensor& k_cache, const Tensor& v_cache, const Tensor& block_table,
                       const Tensor& query_start_loc, const Tensor& seq_lens,
                       const Tensor& num_sink_tokens, const Tensor& window_size,
                       const Tensor& window_floor, const Tensor& ring_blocks, double scale,
                       const std::optional<Tensor>& alibi_slopes, double softcap,
                       int64_t local_window) {
  kCheck.heads(query, sink_query, k_cache, v_cache);
  const int64_t num_tokens = query.size(0), num_heads = query.size(1);
  const AttentionBatch batch{block_table, query_start_loc, seq_lens,   num_sink_tokens,
                             window_size, window_floor,    ring_blocks};
  const AttentionLayer layer =
      kCheck.layer(scale, alibi_slopes, softcap, local_window, num_heads, query);
  AttentionStep step(batch, query, num_tokens, k_cache.size(2));
  Tensor out = torch::stable::new_empty(query, {num_tokens, num_heads, head_dim_of(k_cache)});
  const Tensor& sinks = sink_query ? *sink_query : query;
  if (num_tokens > 0) {
    attend({query.data_ptr(), query.stride(0), num_heads},
           {sinks.data_ptr(), sinks.stride(0), num_heads}, dtype_of(query), k_cache, v_cache, step,
           layer, out.mutable_data_ptr());
  }
  return out;
}

}  // namespace

AttentionStep::AttentionStep(const AttentionBatch& batch, const Tensor& like, int64_t num_tokens,
                             int64_t block_size) {
  kCheck.batch(batch, like);
  sequences_ = read_batch(batch, num_tokens, block_size);
}

const AttentionPlan& AttentionStep::plan(int group_size, int64_t local_window) {
  for (const Cut& cut : cuts_) {
    if (cut.group_size == group_size && cut.local_window == local_window) return cut.plan;
  }
  cuts_.push_back({group_size, local_window, plan_attention(sequences_, group_size, local_window)});
  return cuts_.back().plan;
}

void attend(const Heads& query, const Heads& sink_query, DType dtype, const Tensor& k_cache,
            const Tensor& v_cache, AttentionStep& step, const AttentionLayer& layer, void* out) {
  AttentionInputs inputs{};
  inputs.element_size = dtype == DType::kFloat32 ? 4 : 2;
  inputs.query = static_cast<const char*>(query.data);
  inputs.sink_query = static_cast<const char*>(sink_query.data);
  inputs.query_stride = query.stride * inputs.element_size;
  inputs.sink_query_stride = sink_query.stride * inputs.element_size;
  inputs.out = static_cast<char*>(out);
  inputs.k_cache = k_cache.const_data_ptr();
  inputs.v_cache = v_cache.const_data_ptr();
  inputs.num_blocks = k_cache.size(0);
  inputs.block_stride = k_cache.stride(0);
  inputs.num_heads = query.num_heads;
  inputs.num_kv_heads = k_cache.size(1);
  inputs.block_size = k_cache.size(2);
  inputs.row_size = k_cache.size(3);
  inputs.head_dim = head_dim_of(k_cache);
  inputs.scale = static_cast<float>(layer.scale);
  inputs.alibi_slopes = layer.alibi_slopes;
  inputs.softcap = static_cast<float>(layer.softcap);
  inputs.local_window = layer.local_window == 0 ? kNoLocalWindow : layer.local_window;
  const AttentionKernels* table =
      kernels().attention(dtype, dtype_of(k_cache), static_cast<int>(inputs.head_dim));
  const int group_size = static_cast<int>(inputs.group_size());
  run_attention(inputs, step.plan(group_size, inputs.local_window), *table);
}

}  // namespace paged_stream

STABLE_TORCH_LIBRARY_IMPL(paged_stream, CPU, m) {
  m.impl("paged_attention", TORCH_BOX(&paged_stream::paged_attention));
}
