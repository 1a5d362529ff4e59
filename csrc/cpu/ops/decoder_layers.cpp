// All layers of a decoder in one op. Weights are checked when they are laid out for it, what
// depends on the step alone is checked and planned once per step.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <memory>
#include <mutex>
#include <unordered_map>
#include <utility>
#include <vector>

#include "ops/blocks.h"
#include "threads/parallel.h"

namespace paged_stream {
namespace {

using Tensors = std::vector<Tensor>;

constexpr Checker kCheck("decoder_layers");

struct Layer {
  const float *attention_norm, *mlp_norm;
  AttentionBlock attention;
  GatedMlp mlp;
  size_t rotary;  // index of its table
};

// Weights of all layers as plain pointers, and the tensors that own them.
struct Layers {
  std::vector<Layer> layers;
  std::vector<Tensors> owners;
  int64_t dim, num_kv_heads, head_dim;
  ScalarType dtype;
  float eps;
  bool interleaved;
};

// Ops know no objects, so Python holds numbers. Entries live until they are freed.
class Registry {
 public:
  int64_t add(std::shared_ptr<const Layers> layers) {
    const std::lock_guard lock(mutex_);
    entries_[++last_] = std::move(layers);
    return last_;
  }
  void remove(int64_t handle) {
    const std::lock_guard lock(mutex_);
    entries_.erase(handle);
  }
  std::shared_ptr<const Layers> get(int64_t handle) {
    const std::lock_guard lock(mutex_);
    const auto entry = entries_.find(handle);
    kCheck.require(entry != entries_.end(), "layers must be a handle from lay_out_layers, got ",
                   handle);
    return entry->second;
  }

 private:
  std::mutex mutex_;
  std::unordered_map<int64_t, std::shared_ptr<const Layers>> entries_;
  int64_t last_ = 0;
};

Registry& registry() {
  static auto* const instance = new Registry;  // outlives whatever Python frees at exit
  return *instance;
}

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
  const auto of = registry().get(layers);
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
  m.impl("lay_out_layers", TORCH_BOX(&paged_stream::lay_out_layers));
  m.impl("decoder_layers", TORCH_BOX(&paged_stream::decoder_layers));
}

STABLE_TORCH_LIBRARY_IMPL(paged_stream, CompositeExplicitAutograd, m) {
  m.impl("free_layers", TORCH_BOX(&paged_stream::free_layers));
}
