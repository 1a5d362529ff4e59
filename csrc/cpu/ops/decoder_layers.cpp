// All layers of a decoder in one op. Weights are checked when they are laid out; whatever depends
// only on the step is checked and planned once per step.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "batch.h"
#include "ops/attention_layer.h"
#include "ops/cache_rows.h"
#include "ops/gated_mlp.h"
#include "ops/registry.h"
#include "threads/parallel.h"

namespace paged_stream {
namespace {

using Tensors = std::vector<Tensor>;

struct Layer {
  std::shared_ptr<const AttentionLayer> attention;
  std::shared_ptr<const GatedMlp> mlp;
  size_t rotary;  // index of its rotary table
};

// Layers of equal sizes; the first one stands for all where they agree.
struct DecoderLayers {
  std::vector<Layer> layers;

  size_t size() const { return layers.size(); }
  const AttentionLayer& first() const { return *layers[0].attention; }
  const InputNorm& input() const { return first().norm; }
};

using Handles = Registry<DecoderLayers>;

void check_alike(const Checker& check, const DecoderLayers& of, const Layer& layer) {
  const AttentionLayer &a = *layer.attention, &first = of.first();
  const auto has_input = [&](const InputNorm& norm) {
    return norm.dim == of.input().dim && norm.dtype == of.input().dtype;
  };
  check.require(has_input(a.norm) && has_input(layer.mlp->norm),
                "all layers must have the same input size and dtype");
  check.require(a.num_kv_heads == first.num_kv_heads && a.head_dim == first.head_dim &&
                    a.interleaved == first.interleaved,
                "all layers must have the same num_kv_heads, head_dim and interleaved");
}

// attention, mlp: handles. layer_rotary: the index of each layer's rotary table.
int64_t lay_out_decoder_layers(std::vector<int64_t> attention, std::vector<int64_t> mlp,
                               std::vector<int64_t> layer_rotary) {
  constexpr Checker check("lay_out_decoder_layers");
  const size_t count = attention.size();
  check.require(count > 0 && mlp.size() == count && layer_rotary.size() == count,
                "attention, mlp and layer_rotary must have the same length, at least 1, got ",
                count, ", ", mlp.size(), " and ", layer_rotary.size());
  DecoderLayers of;
  for (size_t i = 0; i < count; ++i) {
    check.require(layer_rotary[i] >= 0, "layer_rotary must be at least 0, got ", layer_rotary[i]);
    of.layers.push_back({AttentionLayer::of_handle(check, attention[i]),
                         GatedMlp::of_handle(check, mlp[i]), static_cast<size_t>(layer_rotary[i])});
    check_alike(check, of, of.layers.back());
  }
  return Handles::instance().add(std::make_shared<const DecoderLayers>(std::move(of)));
}

void free_decoder_layers(int64_t layers) { Handles::instance().remove(layers); }

void check_caches(const Checker& check, const DecoderLayers& of, const Tensors& k_caches,
                  const Tensors& v_caches) {
  check.require(k_caches.size() == of.size() && v_caches.size() == of.size(),
                "k_caches and v_caches must have ", of.size(), " tensors each, got ",
                k_caches.size(), " and ", v_caches.size());
  const Tensor& first = k_caches[0];
  of.first().check_cache(check, first, v_caches[0]);
  for (size_t i = 1; i < of.size(); ++i) {
    check.cache_pair(k_caches[i], v_caches[i]);
    check.same_shape(k_caches[i], "k_caches", first, "k_caches[0]");
    check.dtype(k_caches[i], "k_caches", first.scalar_type());
  }
}

std::vector<RotaryStep> read_tables(const Checker& check, const DecoderLayers& of,
                                    const Tensors& rotary, const Tensors& sink_rotary,
                                    const Slots& slots, const Tensor& cache) {
  check.require(sink_rotary.empty() || sink_rotary.size() == rotary.size(),
                "sink_rotary must have no tensors or ", rotary.size(),
                ", one per rotary table, got ", sink_rotary.size());
  std::vector<RotaryStep> tables;
  for (size_t i = 0; i < rotary.size(); ++i) {
    std::optional<Tensor> sinks;
    if (!sink_rotary.empty()) sinks = sink_rotary[i];
    tables.push_back(
        RotaryStep::read(check, rotary[i], sinks, of.first().interleaved, slots, cache));
  }
  for (const Layer& layer : of.layers) {
    check.require(layer.rotary < tables.size(), "a layer uses rotary table ", layer.rotary,
                  ", but rotary has only ", tables.size(), " tables");
  }
  return tables;
}

StepAdapters read_adapters(const Checker& check, const DecoderLayers& of,
                           const std::vector<int64_t>& handles,
                           const std::optional<Tensor>& row_adapters, int64_t rows) {
  const auto count = static_cast<int64_t>(of.size());
  auto step = StepAdapters::read(check, handles, row_adapters, rows, of.input().dtype, count);
  for (const auto& adapter : step.adapters()) {
    for (int64_t i = 0; i < count; ++i) {
      const auto fits = [&](Projection projection, const PackedWeight& weight) {
        adapter->check_fits(check, i, projection, weight.in_features, weight.out_features);
      };
      fits(Projection::kQkv, of.layers[i].attention->qkv);
      fits(Projection::kOutput, of.layers[i].attention->output);
      fits(Projection::kUp, of.layers[i].mlp->up);
      fits(Projection::kDown, of.layers[i].mlp->down);
    }
  }
  return step;
}

RmsNormInput after(RmsNormInput input, const InputNorm& norm, const void* delta) {
  input.args.weight = norm.weight;
  input.args.eps = norm.eps;
  input.args.delta = delta;
  return input;
}

Tensor decoder_layers(Tensor residual, int64_t layers, Tensors rotary, Tensors sink_rotary,
                      Tensors k_caches, Tensors v_caches, BatchTensors batch,
                      std::vector<int64_t> adapters, std::optional<Tensor> row_adapters) {
  constexpr Checker check("decoder_layers");
  const auto of = Handles::instance().get(check, "layers", "lay_out_decoder_layers", layers);
  const RmsNormInput input = of->input().of(check, residual, {});
  check_caches(check, *of, k_caches, v_caches);
  const Batch fields = read_batch(check, batch, residual, input.rows);
  const std::vector<int64_t> slots = checked_slots(check, slots_of(fields), k_caches[0]);
  const auto tables = read_tables(check, *of, rotary, sink_rotary, slots, k_caches[0]);
  AttentionStep step(check, fields, input.rows, k_caches[0]);
  const StepAdapters added = read_adapters(check, *of, adapters, row_adapters, input.rows);
  Tensor out = torch::stable::empty_like(residual);
  if (input.rows == 0) return out;

  static thread_local GrowingBuffer<char> attended_buffer;
  void* const attended = attended_buffer.get(residual.numel() * residual.element_size());
  const void* delta = nullptr;
  for (size_t i = 0; i < of->size(); ++i) {
    const auto& [attention, mlp, table] = of->layers[i];
    const LayerAdapters of_layer{added, static_cast<int64_t>(i)};
    attention->run(after(input, attention->norm, delta), k_caches[i], v_caches[i], tables[table],
                   step, of_layer, attended);
    mlp->run(after(input, mlp->norm, attended), of_layer, out.data_ptr());
    delta = out.data_ptr();
  }
  return out;
}

}  // namespace
}  // namespace paged_stream

STABLE_TORCH_LIBRARY_IMPL(paged_stream, CPU, m) {
  m.impl("decoder_layers", TORCH_BOX(&paged_stream::decoder_layers));
}

STABLE_TORCH_LIBRARY_IMPL(paged_stream, CompositeExplicitAutograd, m) {
  m.impl("lay_out_decoder_layers", TORCH_BOX(&paged_stream::lay_out_decoder_layers));
  m.impl("free_decoder_layers", TORCH_BOX(&paged_stream::free_decoder_layers));
}
