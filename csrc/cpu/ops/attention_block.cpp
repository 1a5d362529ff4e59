// The attention block of a layer in one op: in decoding, calls cost as much as arithmetic.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "ops/blocks.h"
#include "threads/parallel.h"

namespace paged_stream {
namespace {

int64_t qkv_size(int64_t num_heads, const Tensor& k_cache) {
  return (num_heads + 2 * k_cache.size(1)) * head_dim_of(k_cache);
}

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
  const ScalarType dtype = residual.scalar_type();
  const AttentionBlock block{
      PackedWeight::read(check, qkv_weight, qkv_bias, qkv_size(num_heads, k_cache), dtype),
      PackedWeight::read(check, output_weight, output_bias, norm.args.dim, dtype),
      AttentionChecker().layer(scale, alibi_slopes, softcap, local_window, num_heads, residual),
      num_heads};
  block.check_sizes(check, norm.args.dim, k_cache.size(1), head_dim_of(k_cache));
  if (!is_quantized(k_cache)) check.dtype(k_cache, "k_cache", dtype);
  const auto turns =
      RotaryStep::read(check, rotary, sink_rotary, slot_mapping, interleaved, norm.rows, k_cache);
  const AttentionBatch batch{block_table, query_start_loc, seq_lens,   num_sink_tokens,
                             window_size, window_floor,    ring_blocks};
  AttentionStep step(batch, residual, norm.rows, k_cache.size(2));
  Tensor out = torch::stable::empty_like(residual);
  if (norm.rows > 0) block.run(norm, k_cache, v_cache, turns, step, out.data_ptr());
  return out;
}

}  // namespace

void AttentionBlock::check_sizes(const Checker& check, int64_t dim, int64_t num_kv_heads,
                                 int64_t head_dim) const {
  check.require(num_heads >= 1 && num_heads % num_kv_heads == 0,
                "num_heads must be a multiple of num_kv_heads ", num_kv_heads, ", got ", num_heads);
  const int64_t query_size = num_heads * head_dim;
  check.require(qkv.in_features == dim && output.in_features == query_size, "qkv_weight must take ",
                dim, " inputs and output_weight ", query_size, ", got ", qkv.in_features, " and ",
                output.in_features);
}

void AttentionBlock::run(const RmsNormInput& norm, const Tensor& k_cache, const Tensor& v_cache,
                         const RotaryStep& rotary, AttentionStep& step, void* out) const {
  const int64_t rows = norm.rows, dim = norm.args.dim, size = norm.element_size();
  const int64_t head_bytes = head_dim_of(k_cache) * size, kv_heads = k_cache.size(1);
  const int64_t query_size = num_heads * head_dim_of(k_cache);
  static thread_local GrowingBuffer<char> normed_buffer, qkv_buffer, query_buffer;
  char* normed = normed_buffer.get(rows * dim * size);
  char* heads = qkv_buffer.get(rows * qkv.out_features * size);
  // Queries towards the sinks, and what attention returns.
  char* sinks = query_buffer.get(2 * rows * query_size * size);
  char* context = sinks + rows * query_size * size;
  run_rms_norm(norm.into(normed), rows, norm.dtype);
  run_linear({normed, rows, dim, norm.dtype}, qkv, heads, false);

  const Heads all{heads, qkv.out_features, 0};
  const Heads query = all.from(0, num_heads, head_bytes);
  const Heads key = all.from(num_heads, kv_heads, head_bytes);
  const Heads value = all.from(num_heads + kv_heads, kv_heads, head_bytes);
  const bool has_gap = rotary.sink_angles.data != nullptr;
  const Heads sink_query{has_gap ? sinks : nullptr, query_size, num_heads};
  rotate_and_store(query, sink_query, key, value, norm.dtype, k_cache, v_cache, rotary);
  attend(query, has_gap ? sink_query : query, norm.dtype, k_cache, v_cache, step, layer, context);
  run_linear({context, rows, query_size, norm.dtype}, output, out, false);
}

}  // namespace paged_stream

STABLE_TORCH_LIBRARY_IMPL(paged_stream, CPU, m) {
  m.impl("attention_block", TORCH_BOX(&paged_stream::attention_block));
}
