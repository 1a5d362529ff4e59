// paged_attention on the CPU: checks the arguments and passes them on as plain pointers.

#include "ops/paged_attention.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>

#include "batch.h"
#include "dtype.h"
#include "isa/kernel_table.h"
#include "ops/attention_run.h"

namespace paged_stream {
namespace {

Tensor paged_attention(const Tensor& query, const std::optional<Tensor>& sink_query,
                       const Tensor& k_cache, const Tensor& v_cache, const BatchTensors& batch,
                       double scale, const std::optional<Tensor>& alibi_slopes, double softcap,
                       int64_t local_window) {
  constexpr AttentionChecker check("paged_attention");
  check.attention_heads(query, sink_query, k_cache, v_cache);
  const int64_t num_tokens = query.size(0), num_heads = query.size(1);
  const Scoring scoring =
      check.scoring(scale, alibi_slopes, softcap, local_window, num_heads, query);
  const Batch fields = read_batch(check, batch, query, num_tokens);
  AttentionStep step(check, fields, num_tokens, k_cache);
  Tensor out = torch::stable::new_empty(query, {num_tokens, num_heads, head_dim_of(k_cache)});
  const Tensor& sinks = sink_query ? *sink_query : query;
  if (num_tokens > 0) {
    attend({query.data_ptr(), row_stride(query), num_heads},
           {sinks.data_ptr(), row_stride(sinks), num_heads}, dtype_of(query), k_cache, v_cache,
           step, scoring, out.mutable_data_ptr());
  }
  return out;
}

}  // namespace

void attend(const Heads& query, const Heads& sink_query, DType dtype, const Tensor& k_cache,
            const Tensor& v_cache, AttentionStep& step, const Scoring& scoring, void* out) {
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
  inputs.block_stride = row_stride(k_cache);
  inputs.num_heads = query.num_heads;
  inputs.num_kv_heads = k_cache.size(1);
  inputs.block_size = k_cache.size(2);
  inputs.row_size = k_cache.size(3);
  inputs.head_dim = head_dim_of(k_cache);
  inputs.scale = static_cast<float>(scoring.scale);
  inputs.alibi_slopes = scoring.alibi_slopes;
  inputs.softcap = static_cast<float>(scoring.softcap);
  inputs.local_window = scoring.local_window;
  const AttentionKernels* table =
      kernels().attention(dtype, dtype_of(k_cache), static_cast<int>(inputs.head_dim));
  const int group_size = static_cast<int>(inputs.group_size());
  run_attention(step.checker(), inputs, step.plan(group_size, inputs.local_window), *table);
}

}  // namespace paged_stream

STABLE_TORCH_LIBRARY_IMPL(paged_stream, CPU, m) {
  m.impl("paged_attention", TORCH_BOX(&paged_stream::paged_attention));
}
