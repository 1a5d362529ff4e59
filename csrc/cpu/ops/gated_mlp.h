// The gated feed-forward half of a decoder layer, with weights as plain pointers.
#pragma once

#include <cstdint>
#include <memory>

#include "ops/layer_weights.h"
#include "ops/linear.h"

namespace paged_stream {

// down(silu(gate(x)) * up(x)) of x = norm(residual += delta).
struct GatedMlp {
  InputNorm norm;
  PackedWeight up, down;
  int64_t intermediate_size;
  LayerWeights weights;  // whose memory the pointers are of

  static std::shared_ptr<const GatedMlp> of_handle(const Checker& check, int64_t handle);

  void run(const RmsNormInput& input, void* out) const;
};

}  // namespace paged_stream
