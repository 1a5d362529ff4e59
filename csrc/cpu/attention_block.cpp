// The attention block of a layer in one op: in decoding, calls cost as much as arithmetic.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "attention.h"
#include "checks.h"
#include "elementwise.h"
#include "linear.h"
#include "parallel.h"

namespace paged_stream {
namespace {

// Some heads of rows that lie `stride` elements apart, as a tensor that owns nothing.
Tensor view_heads(void* data, int64_t rows, int64_t heads, int64_t head_dim, int64_t stride,
                  const Tensor& like) {
  const int64_t sizes[] = {rows, heads, head_dim}, strides[] = {stride, head_dim, 1};
  return torch::stable::from_blob(data, {sizes, 3}, {strides, 3}, like.device(),
                                  like.scalar_type());
}

// output(attention(qkv(x))) of x = norm(residual += delta).
Tensor attention_block(Tensor residual, std::optional<Tensor> delta, Tensor norm_weight, double eps,
                       Tensor qkv_weight, std::optional<Tensor> qkv_bias, Tensor output_weight,
                       std::optional<Tensor> output_bias, int64_t num_heads, Tensor rotary,
                       std::optional<Tensor> sink_rotary, bool interleaved, Tensor k_cache,
                       Tensor v_cache, Tensor slot_mapping, Tensor block_table,
                       Tensor query_start_loc, Tensor seq_lens, Tensor num_sink_tokens,
                       Tensor window_size, Tensor window_floor, Tensor ring_blocks, double scale,
                       std::optional<Tensor> alibi_slopes, double softcap, int64_t local_window) {
  constexpr Checker check("attention_block");
  const RmsNormInput norm = RmsNormInput::read(check, residual, delta, norm_weight, eps);
  check.cache_pair(k_cache, v_cache);
  const int64_t rows = norm.rows, dim = norm.args.dim, element_size = residual.element_size();
  const int64_t num_kv_heads = k_cache.size(1), head_dim = head_dim_of(k_cache);
  const int64_t query_size = num_heads * head_dim, kv_size = num_kv_heads * head_dim;
  const int64_t qkv_size = query_size + 2 * kv_size;
  const ScalarType dtype = residual.scalar_type();
  const auto qkv = PackedWeight::read(check, qkv_weight, qkv_bias, qkv_size, dtype);
  const auto output = PackedWeight::read(check, output_weight, output_bias, dim, dtype);
  check.require(qkv.in_features == dim && output.in_features == query_size,
                "qkv_weight must take " + std::to_string(dim) + " inputs and output_weight " +
                    std::to_string(query_size) + ", got " + std::to_string(qkv.in_features) +
                    " and " + std::to_string(output.in_features));
  Tensor out = torch::stable::empty_like(residual);
  if (rows == 0) return out;

  static thread_local GrowingBuffer<char> normed_buffer, qkv_buffer, query_buffer;
  char* normed = normed_buffer.get(rows * dim * element_size);
  char* heads = qkv_buffer.get(rows * qkv_size * element_size);
  // Queries towards the sinks, and what attention returns.
  char* sinks = query_buffer.get(2 * rows * query_size * element_size);
  char* context = sinks + rows * query_size * element_size;
  run_rms_norm(norm.into(normed), rows, norm.dtype);
  run_linear({normed, rows, dim, norm.dtype}, qkv, heads, false);

  char* key_data = heads + query_size * element_size;
  char* value_data = key_data + kv_size * element_size;
  const Tensor query = view_heads(heads, rows, num_heads, head_dim, qkv_size, residual);
  const Tensor key = view_heads(key_data, rows, num_kv_heads, head_dim, qkv_size, residual);
  const Tensor value = view_heads(value_data, rows, num_kv_heads, head_dim, qkv_size, residual);
  std::optional<Tensor> sink_query;
  if (sink_rotary) {
    sink_query = view_heads(sinks, rows, num_heads, head_dim, query_size, residual);
  }
  rotary_and_cache(query, sink_query, key, value, k_cache, v_cache, rotary, sink_rotary,
                   slot_mapping, interleaved);
  const AttentionBatch batch{block_table, query_start_loc, seq_lens,   num_sink_tokens,
                             window_size, window_floor,    ring_blocks};
  const AttentionLayer layer{scale, alibi_slopes, softcap, local_window};
  attend(query, sink_query, k_cache, v_cache, batch, layer, context);
  run_linear({context, rows, query_size, norm.dtype}, output, out.data_ptr(), false);
  return out;
}

}  // namespace
}  // namespace paged_stream

STABLE_TORCH_LIBRARY_IMPL(paged_stream, CPU, m) {
  m.impl("attention_block", TORCH_BOX(&paged_stream::attention_block));
}
