// The attention half of a decoder layer, with weights as plain pointers.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <memory>

#include "attention_checks.h"
#include "ops/add_adapters.h"
#include "ops/attention_step.h"
#include "ops/layer_weights.h"
#include "ops/linear.h"
#include "ops/rotary_and_cache.h"

namespace paged_stream {

// Computes output(attention(qkv(x))) with x = norm(residual += delta).
struct AttentionLayer {
  InputNorm norm;
  PackedWeight qkv, output;
  Scoring scoring;
  int64_t num_heads, num_kv_heads, head_dim;
  bool interleaved;
  LayerWeights weights;  // owner of the memory behind the pointers

  static std::shared_ptr<const AttentionLayer> of_handle(const Checker& check, int64_t handle);

  void check_cache(const Checker& check, const Tensor& k_cache, const Tensor& v_cache) const;
  void run(const RmsNormInput& input, const Tensor& k_cache, const Tensor& v_cache,
           const RotaryStep& rotary, AttentionStep& step, const LayerAdapters& adapters,
           void* out) const;
};

}  // namespace paged_stream
