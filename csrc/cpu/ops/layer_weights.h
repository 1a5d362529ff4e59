// The weights of half a layer as Python passes them: packed matrices, optional biases, input norm.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "checks.h"
#include "ops/elementwise.h"

namespace paged_stream {

using LayerWeights = std::vector<std::optional<Tensor>>;

inline void check_weights(const Checker& check, const LayerWeights& weights, size_t count,
                          std::initializer_list<size_t> optional) {
  check.require(weights.size() == count, "weights must have ", count, " entries, got ",
                weights.size());
  for (size_t i = 0; i < count; ++i) {
    bool may_lack = false;
    for (const size_t index : optional) may_lack |= index == i;
    check.require(may_lack || weights[i].has_value(), "weights[", i,
                  "] must be a tensor, got None");
  }
}

inline ScalarType model_dtype(bool is_bfloat16) {
  return is_bfloat16 ? ScalarType::BFloat16 : ScalarType::Float;
}

// The norm before half a layer: x = residual / rms(residual) * weight.
struct InputNorm {
  const float* weight;  // [dim]
  int64_t dim;
  float eps;
  ScalarType dtype;  // of the residual stream

  static InputNorm read(const Checker& check, const Tensor& weight, double eps, ScalarType dtype) {
    check.norm_weight(weight);
    check.in_range(weight.size(0), 1, kMaxCount, "dim of weight");
    return {weight.const_data_ptr<float>(), weight.size(0), static_cast<float>(eps), dtype};
  }

  // Returns the checked residual stream and the delta to add to it first.
  RmsNormInput of(const Checker& check, const Tensor& residual,
                  const std::optional<Tensor>& delta) const {
    check.residual(residual, delta, dim);
    check.dtype(residual, "residual", dtype);
    return {{residual.data_ptr(), delta ? delta->data_ptr() : nullptr, weight, nullptr, dim, eps},
            residual.size(0),
            dtype_of(residual)};
  }
};

}  // namespace paged_stream
