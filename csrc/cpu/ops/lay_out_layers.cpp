// lay_out_layers and free_layers: the weights of all layers, checked once for decoder_layers.

#include <torch/csrc/stable/library.h>

#include <memory>
#include <utility>
#include <vector>

#include "ops/layer_registry.h"

namespace paged_stream {
namespace {

constexpr Checker kCheck("lay_out_layers");

// One weight and, if there are any, one bias per layer.
PackedWeight weight_of(const Tensors& weights, const Tensors& biases, size_t layer,
                       int64_t out_features, ScalarType dtype) {
  std::optional<Tensor> bias;
  if (!biases.empty()) bias = biases[layer];
  return PackedWeight::read(kCheck, weights[layer], bias, out_features, dtype);
}

int64_t lay_out_layers(Tensors attention_norms, Tensors qkv_weights, Tensors qkv_biases,
                       Tensors output_weights, Tensors output_biases, Tensors mlp_norms,
                       Tensors up_weights, Tensors up_biases, Tensors down_weights,
                       Tensors down_biases, double eps, int64_t num_heads, int64_t num_kv_heads,
                       int64_t head_dim, int64_t intermediate_size, bool interleaved, double scale,
                       std::optional<Tensor> alibi_slopes, double softcap,
                       std::vector<int64_t> local_windows, std::vector<int64_t> layer_rotary,
                       bool is_bfloat16) {
  const size_t num_layers = attention_norms.size();
  kCheck.require(num_layers > 0, "attention_norms must not be empty");
  for (const auto* list : {&qkv_weights, &output_weights, &mlp_norms, &up_weights, &down_weights}) {
    kCheck.require(list->size() == num_layers, "norms and weights must be ", num_layers,
                   " each, got ", list->size());
  }
  for (const auto* list : {&qkv_biases, &output_biases, &up_biases, &down_biases}) {
    kCheck.require(list->empty() || list->size() == num_layers, "biases must be none or ",
                   num_layers, ", got ", list->size());
  }
  kCheck.require(local_windows.size() == num_layers && layer_rotary.size() == num_layers,
                 "local_windows and layer_rotary must have ", num_layers, " numbers, got ",
                 local_windows.size(), " and ", layer_rotary.size());
  auto made = std::make_shared<Layers>();
  made->dim = attention_norms[0].size(0);
  made->num_kv_heads = num_kv_heads;
  made->head_dim = head_dim;
  made->dtype = is_bfloat16 ? ScalarType::BFloat16 : ScalarType::Float;
  made->eps = static_cast<float>(eps);
  made->interleaved = interleaved;
  const int64_t qkv_size = (num_heads + 2 * num_kv_heads) * head_dim;
  for (size_t i = 0; i < num_layers; ++i) {
    kCheck.require(layer_rotary[i] >= 0, "layer_rotary must be at least 0, got ", layer_rotary[i]);
    const auto weight = [&](const Tensors& weights, const Tensors& biases, int64_t out_features) {
      return weight_of(weights, biases, i, out_features, made->dtype);
    };
    const AttentionBlock attention{
        weight(qkv_weights, qkv_biases, qkv_size), weight(output_weights, output_biases, made->dim),
        AttentionChecker().layer(scale, alibi_slopes, softcap, local_windows[i], num_heads,
                                 attention_norms[i]),
        num_heads};
    const GatedMlp mlp{weight(up_weights, up_biases, 2 * intermediate_size),
                       weight(down_weights, down_biases, made->dim), intermediate_size};
    attention.check_sizes(kCheck, made->dim, num_kv_heads, head_dim);
    mlp.check_sizes(kCheck, made->dim);
    made->layers.push_back({norm_weight(kCheck, attention_norms[i], made->dim),
                            norm_weight(kCheck, mlp_norms[i], made->dim), attention, mlp,
                            static_cast<size_t>(layer_rotary[i])});
  }
  made->owners = {attention_norms, qkv_weights, qkv_biases, output_weights, output_biases,
                  mlp_norms,       up_weights,  up_biases,  down_weights,   down_biases};
  if (alibi_slopes) made->owners.push_back({*alibi_slopes});
  return registry().add(std::move(made));
}

void free_layers(int64_t layers) { registry().remove(layers); }

}  // namespace
}  // namespace paged_stream

STABLE_TORCH_LIBRARY_IMPL(paged_stream, CPU, m) {
  m.impl("lay_out_layers", TORCH_BOX(&paged_stream::lay_out_layers));
}

STABLE_TORCH_LIBRARY_IMPL(paged_stream, CompositeExplicitAutograd, m) {
  m.impl("free_layers", TORCH_BOX(&paged_stream::free_layers));
}
