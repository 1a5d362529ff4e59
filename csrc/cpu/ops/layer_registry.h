// Layers that were laid out for decoder_layers, by their handles.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "ops/blocks.h"

namespace paged_stream {

using Tensors = std::vector<Tensor>;

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
  int64_t add(std::shared_ptr<const Layers> layers);
  void remove(int64_t handle);
  std::shared_ptr<const Layers> get(const Checker& check, int64_t handle);

 private:
  std::mutex mutex_;
  std::unordered_map<int64_t, std::shared_ptr<const Layers>> entries_;
  int64_t last_ = 0;
};

Registry& registry();

}  // namespace paged_stream
