// The attention half of a layer as one op: in decoding, calls cost as much as arithmetic.

#include "ops/attention_layer.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <optional>
#include <utility>
#include <vector>

#include "batch.h"
#include "ops/cache_rows.h"
#include "ops/paged_attention.h"
#include "ops/registry.h"
#include "threads/parallel.h"

namespace paged_stream {
namespace {

using Handles = Registry<AttentionLayer>;

// weights: norm; packed [Q, K, V]; its bias or none; packed output; its bias or none; ALiBi slopes
// or none. heads: num_heads, num_kv_heads, head_dim.
int64_t lay_out_attention_layer(LayerWeights weights, std::vector<int64_t> heads, double eps,
                                bool interleaved, double scale, double softcap,
                                int64_t local_window, bool is_bfloat16) {
  constexpr AttentionChecker check("lay_out_attention_layer");
  check_weights(check, weights, 6, {2, 4, 5});
  check.require(heads.size() == 3, "heads must have 3 numbers, got ", heads.size());
  const int64_t num_heads = heads[0], num_kv_heads = heads[1], head_dim = heads[2];
  check.in_range(num_heads, 1, kMaxHeads, "num_heads");
  check.in_range(num_kv_heads, 1, kMaxHeads, "num_kv_heads");
  check.head_dim(head_dim);
  check.require(num_heads % num_kv_heads == 0, "num_heads must be a multiple of num_kv_heads ",
                num_kv_heads, ", got ", num_heads);
  const ScalarType dtype = model_dtype(is_bfloat16);
  const InputNorm norm = InputNorm::read(check, *weights[0], eps, dtype);
  const int64_t query_size = num_heads * head_dim,
                qkv_size = query_size + 2 * num_kv_heads * head_dim;
  const auto qkv = PackedWeight::read(check, *weights[1], weights[2], qkv_size, dtype);
  const auto output = PackedWeight::read(check, *weights[3], weights[4], norm.dim, dtype);
  check.require(qkv.in_features == norm.dim && output.in_features == query_size,
                "in_features of qkv_weight must be ", norm.dim, " and of output_weight ",
                query_size, ", got ", qkv.in_features, " and ", output.in_features);
  const Scoring scoring =
      check.scoring(scale, weights[5], softcap, local_window, num_heads, *weights[0]);
  AttentionLayer layer{norm,         qkv,      output,      scoring,           num_heads,
                       num_kv_heads, head_dim, interleaved, std::move(weights)};
  return Handles::instance().add(std::make_shared<const AttentionLayer>(std::move(layer)));
}

void free_attention_layer(int64_t layer) { Handles::instance().remove(layer); }

Tensor attention_layer(Tensor residual, std::optional<Tensor> delta, int64_t layer, Tensor rotary,
                       std::optional<Tensor> sink_rotary, Tensor k_cache, Tensor v_cache,
                       BatchTensors batch) {
  constexpr Checker check("attention_layer");
  const auto of = AttentionLayer::of_handle(check, layer);
  const RmsNormInput input = of->norm.of(check, residual, delta);
  of->check_cache(check, k_cache, v_cache);
  const Batch fields = read_batch(check, batch, residual, input.rows);
  const std::vector<int64_t> slots = checked_slots(check, slots_of(fields), k_cache);
  const auto turns = RotaryStep::read(check, rotary, sink_rotary, of->interleaved, slots, k_cache);
  AttentionStep step(check, fields, input.rows, k_cache);
  Tensor out = torch::stable::empty_like(residual);
  if (input.rows == 0) return out;
  of->run(input, k_cache, v_cache, turns, step, {StepAdapters(), 0}, out.data_ptr());
  return out;
}

}  // namespace

std::shared_ptr<const AttentionLayer> AttentionLayer::of_handle(const Checker& check,
                                                                int64_t handle) {
  return Handles::instance().get(check, "layer", "lay_out_attention_layer", handle);
}

void AttentionLayer::check_cache(const Checker& check, const Tensor& k_cache,
                                 const Tensor& v_cache) const {
  check.cache_pair(k_cache, v_cache);
  check.require(k_cache.size(1) == num_kv_heads && head_dim_of(k_cache) == head_dim,
                "k_cache must have ", num_kv_heads, " heads with head_dim ", head_dim, ", got ",
                k_cache.size(1), " with ", head_dim_of(k_cache));
  if (!is_quantized(k_cache)) check.dtype(k_cache, "k_cache", norm.dtype);
}

void AttentionLayer::run(const RmsNormInput& input, const Tensor& k_cache, const Tensor& v_cache,
                         const RotaryStep& rotary, AttentionStep& step,
                         const LayerAdapters& adapters, void* out) const {
  const int64_t rows = input.rows, size = input.element_size();
  const int64_t query_size = num_heads * head_dim, head_bytes = head_dim * size;
  static thread_local GrowingBuffer<char> normed_buffer, qkv_buffer, query_buffer;
  char* normed = normed_buffer.get(rows * norm.dim * size);
  char* heads = qkv_buffer.get(rows * qkv.out_features * size);
  // Two buffers of [rows, query_size]: the sink queries, and the output of attention.
  char* sinks = query_buffer.get(2 * rows * query_size * size);
  char* context = sinks + rows * query_size * size;
  run_rms_norm(input.into(normed), rows, input.dtype);
  const LinearInput in{normed, rows, norm.dim, input.dtype};
  run_linear(in, qkv, heads, false);
  adapters.add(Projection::kQkv, in, heads, qkv.out_features);

  const Heads all{heads, qkv.out_features, 0};
  const Heads query = all.from(0, num_heads, head_bytes);
  const Heads key = all.from(num_heads, num_kv_heads, head_bytes);
  const Heads value = all.from(num_heads + num_kv_heads, num_kv_heads, head_bytes);
  const bool has_gap = rotary.sink_angles.data != nullptr;
  const Heads sink_query{has_gap ? sinks : nullptr, query_size, num_heads};
  rotate_and_store(query, sink_query, key, value, input.dtype, k_cache, v_cache, rotary);
  attend(query, has_gap ? sink_query : query, input.dtype, k_cache, v_cache, step, scoring,
         context);
  const LinearInput attended{context, rows, query_size, input.dtype};
  run_linear(attended, output, out, false);
  adapters.add(Projection::kOutput, attended, out, output.out_features);
}

}  // namespace paged_stream

STABLE_TORCH_LIBRARY_IMPL(paged_stream, CPU, m) {
  m.impl("lay_out_attention_layer", TORCH_BOX(&paged_stream::lay_out_attention_layer));
  m.impl("attention_layer", TORCH_BOX(&paged_stream::attention_layer));
}

STABLE_TORCH_LIBRARY_IMPL(paged_stream, CompositeExplicitAutograd, m) {
  m.impl("free_attention_layer", TORCH_BOX(&paged_stream::free_attention_layer));
}
