// The two blocks of a decoder layer on checked arguments, for the ops that run one or all of them.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include "ops/elementwise.h"
#include "ops/linear.h"
#include "ops/paged_attention.h"
#include "ops/rotary_and_cache.h"

namespace paged_stream {

// output(attention(qkv(x))) of x = norm(residual += delta).
struct AttentionBlock {
  PackedWeight qkv, output;
  AttentionLayer layer;
  int64_t num_heads;

  // Checks that the weights fit a residual stream of `dim` and the cache's heads.
  void check_sizes(const Checker& check, int64_t dim, int64_t num_kv_heads, int64_t head_dim) const;
  void run(const RmsNormInput& norm, const Tensor& k_cache, const Tensor& v_cache,
           const RotaryStep& rotary, AttentionStep& step, void* out) const;
};

// down(silu(gate(x)) * up(x)) of x = norm(residual += delta).
struct GatedMlp {
  PackedWeight up, down;
  int64_t intermediate_size;

  void check_sizes(const Checker& check, int64_t dim) const;
  void run(const RmsNormInput& norm, void* out) const;
};

}  // namespace paged_stream
