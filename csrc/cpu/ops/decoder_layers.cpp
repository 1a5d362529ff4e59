// All layers of a decoder in one op. Weights are checked when they are laid out for it, what
// depends on the step alone is checked and planned once per step.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <vector>

#include "ops/layer_registry.h"
#include "threads/parallel.h"

namespace paged_stream {
namespace {

constexpr Checker kCheck("decoder_layers");

void check_caches(const Layers& of, const Tensors& k_caches, const Tensors& v_caches) {
  const size_t num_layers = of.layers.size();
  kCheck.require(k_caches.size() == num_layers && v_caches.size() == num_layers,
                 "k_caches and v_caches must be ", num_layers, " each, got ", k_caches.size(),
                 " and ", v_caches.size());
  const Tensor& first = k_caches[0];
  for (size_t i = 0; i < num_layers; ++i) {
    kCheck.cache_pair(k_caches[i], v_caches[i]);
    kCheck.shape(k_caches[i], "k_caches", "of the first",
                 {first.size(0), of.num_kv_heads, first.size(2), first.size(3)});
    kCheck.dtype(k_caches[i], "k_caches", first.scalar_type());
  }
  kCheck.require(head_dim_of(first) == of.head_dim, "k_caches must have a head_dim of ",
                 of.head_dim, ", got ", head_dim_of(first));
  if (!is_quantized(first)) kCheck.dtype(first, "k_caches", of.dtype);
}

std::vector<RotaryStep> read_tables(const Layers& of, const Tensors& rotary,
                                    const Tensors& sink_rotary, const Tensor& slot_mapping,
                                    int64_t num_tokens, const Tensor& cache) {
  kCheck.require(sink_rotary.empty() || sink_rotary.size() == rotary.size(),
                 "sink_rotary must be none or ", rotary.size(), ", got ", sink_rotary.size());
  std::vector<RotaryStep> tables;
  for (size_t i = 0; i < rotary.size(); ++i) {
    std::optional<Tensor> sinks;
    if (!sink_rotary.empty()) sinks = sink_rotary[i];
    tables.push_back(RotaryStep::read(kCheck, rotary[i], sinks, slot_mapping, of.interleaved,
                                      num_tokens, cache));
  }
  for (const Layer& layer : of.layers) {
    kCheck.require(layer.rotary < tables.size(), "rotary must have the table ", layer.rotary,
                   " that a layer takes, got ", tables.size());
  }
  return tables;
}

Tensor decoder_layers(Tensor residual, int64_t layers, Tensors rotary, Tensors sink_rotary,
                      Tensors k_caches, Tensors v_caches, Tensor slot_mapping, Tensor block_table,
                      Tensor query_start_loc, Tensor seq_lens, Tensor num_sink_tokens,
                      Tensor window_size, Tensor window_floor, Tensor ring_blocks) {
  const auto of = registry().get(kCheck, layers);
  kCheck.shape(residual, "residual", "[T, dim]", {kAny, of->dim});
  kCheck.dtype(residual, "residual", of->dtype);
  kCheck.dense(residual, "residual", 0);
  check_caches(*of, k_caches, v_caches);
  const int64_t num_tokens = residual.size(0);
  const auto tables = read_tables(*of, rotary, sink_rotary, slot_mapping, num_tokens, k_caches[0]);
  const AttentionBatch batch{block_table, query_start_loc, seq_lens,   num_sink_tokens,
                             window_size, window_floor,    ring_blocks};
  AttentionStep step(batch, residual, num_tokens, k_caches[0].size(2));
  Tensor out = torch::stable::empty_like(residual);
  if (num_tokens == 0) return out;

  static thread_local GrowingBuffer<char> attended_buffer;
  void* const attended = attended_buffer.get(residual.numel() * residual.element_size());
  RmsNormInput norm{{residual.data_ptr(), nullptr, nullptr, nullptr, of->dim, of->eps},
                    num_tokens,
                    dtype_of(residual)};
  for (size_t i = 0; i < of->layers.size(); ++i) {
    const Layer& layer = of->layers[i];
    norm.args.weight = layer.attention_norm;
    layer.attention.run(norm, k_caches[i], v_caches[i], tables[layer.rotary], step, attended);
    norm.args.weight = layer.mlp_norm;
    norm.args.delta = attended;
    layer.mlp.run(norm, out.data_ptr());
    norm.args.delta = out.data_ptr();
  }
  return out;
}

}  // namespace
}  // namespace paged_stream

STABLE_TORCH_LIBRARY_IMPL(paged_stream, CPU, m) {
  m.impl("decoder_layers", TORCH_BOX(&paged_stream::decoder_layers));
}
