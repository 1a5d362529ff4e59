// The gated MLP half of a decoder layer, with weights as plain pointers.
#pragma once

#include <cstdint>
#include <memory>

#include "ops/add_adapters.h"
#include "ops/layer_weights.h"
#include "ops/linear.h"

namespace paged_stream {

// Computes down(silu(gate(x)) * up(x)) with x = norm(residual += delta).
struct GatedMlp {
  InputNorm norm;
  PackedWeight up, down;
  int64_t intermediate_size;
  LayerWeights weights;  // owner of the memory behind the pointers

  static std::shared_ptr<const GatedMlp> of_handle(const Checker& check, int64_t handle);

  void run(const RmsNormInput& input, const LayerAdapters& adapters, void* out) const;
};

}  // namespace paged_stream
