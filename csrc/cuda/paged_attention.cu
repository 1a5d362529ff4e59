// paged_attention on CUDA: checks what the host can check, and passes plain pointers to the
// kernels. Nothing here waits for the device, and grids depend on shapes only, so a graph can
// capture the op. The contents of the batch's tensors are the caller's responsibility: kernels trap
// on blocks outside the cache.

#include "paged_attention.h"

#include <cstdint>
#include <optional>

#include "attention_checks.h"
#include "batch.h"
#include "tensors.cuh"

namespace paged_stream {
namespace {

// The kernels copy rows in units of `bytes` bytes.
void check_alignment(const Checker& check, const Tensor& t, const char* name, int64_t bytes) {
  const auto address = reinterpret_cast<uintptr_t>(t.const_data_ptr());
  const int64_t stride_bytes = row_stride(t) * static_cast<int64_t>(t.element_size());
  check.require(
      address % bytes == 0 && stride_bytes % bytes == 0, name, " must start at a multiple of ",
      bytes, " bytes, and its first stride must be a multiple of ", bytes,
      " bytes, got an address ", address % bytes, " bytes past one and a stride of ", stride_bytes);
}

void check_alignments(const Checker& check, const Tensor& query, const Tensor& sink_query,
                      const Tensor& k_cache, const Tensor& v_cache) {
  check_alignment(check, query, "query", 16);
  check_alignment(check, sink_query, "sink_query", 16);
  const int64_t bytes = is_quantized(k_cache) ? 4 : k_cache.element_size() == 1 ? 8 : 16;
  check_alignment(check, k_cache, "k_cache", bytes);
  check_alignment(check, v_cache, "v_cache", bytes);
}

PagedAttentionArguments pack(const Tensor& query, const Tensor& sink_query, const Tensor& k_cache,
                             const Tensor& v_cache, const Batch& batch, const Scoring& scoring) {
  PagedAttentionArguments in{};
  in.query = query.const_data_ptr();
  in.sink_query = sink_query.const_data_ptr();
  in.query_stride = row_stride(query);
  in.sink_query_stride = row_stride(sink_query);
  in.num_heads = static_cast<int>(query.size(1));
  in.num_kv_heads = static_cast<int>(k_cache.size(1));
  in.group_size = in.num_heads / in.num_kv_heads;
  in.head_dim = static_cast<int>(head_dim_of(k_cache));
  const int64_t element_size = static_cast<int64_t>(k_cache.element_size());
  in.k_cache = static_cast<const uint8_t*>(k_cache.const_data_ptr());
  in.v_cache = static_cast<const uint8_t*>(v_cache.const_data_ptr());
  in.block_stride = row_stride(k_cache) * element_size;
  in.num_blocks = static_cast<int>(k_cache.size(0));
  in.block_size = static_cast<int>(k_cache.size(2));
  in.row_bytes = static_cast<int>(k_cache.size(3) * element_size);
  in.batch = batch;
  in.num_sequences = static_cast<int>(batch.num_sequences);
  in.score_scale = static_cast<float>(scoring.scale);
  in.alibi_slopes = scoring.alibi_slopes;
  in.softcap = static_cast<float>(scoring.softcap);
  in.local_window = scoring.local_window;
  return in;
}

void run(const Tensor& query, const Tensor& k_cache, const PagedAttentionArguments& in,
         Stream stream) {
  const auto launch = query.scalar_type() == ScalarType::Float      ? launch_attention_float32
                      : query.scalar_type() == ScalarType::BFloat16 ? launch_attention_bfloat16
                                                                    : launch_attention_float16;
  launch(dtype_of(k_cache), in, static_cast<int>(query.size(0)), stream);
}

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
  const Tensor& sinks = sink_query ? *sink_query : query;
  check_alignments(check, query, sinks, k_cache, v_cache);

  const int64_t head_dim = head_dim_of(k_cache), num_sequences = fields.num_sequences;
  Tensor out = torch::stable::new_empty(query, {num_tokens, num_heads, head_dim});
  if (num_tokens == 0 || num_sequences == 0) return out;
  PagedAttentionArguments in = pack(query, sinks, k_cache, v_cache, fields, scoring);
  in.out = out.mutable_data_ptr();
  in.split_all = num_tokens == num_sequences;
  in.max_splits = most_splits(fields.table_width, in.block_size, in.group_size);

  const DeviceScope device(query);
  const int64_t num_parts = in.max_splits == 1 ? 0 : num_sequences * num_heads * in.max_splits;
  Tensor parts = torch::stable::new_empty(query, {num_parts, head_dim + 2}, ScalarType::Float);
  in.part_acc = parts.mutable_data_ptr<float>();
  in.part_max = in.part_acc + num_parts * head_dim;
  in.part_sum = in.part_max + num_parts;
  run(query, k_cache, in, device.stream());
  return out;
}

}  // namespace
}  // namespace paged_stream

STABLE_TORCH_LIBRARY_IMPL(paged_stream, CUDA, m) {
  m.impl("paged_attention", TORCH_BOX(&paged_stream::paged_attention));
}
