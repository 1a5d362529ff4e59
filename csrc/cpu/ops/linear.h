// Packed weights as plain pointers, shared by the launchers.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <vector>

#include "checks.h"
#include "kernels/linear.h"
#include "kernels/quantized_linear.h"
#include "number_types.h"
#include "ops/panels.h"
#include "ops/quantized_weight.h"

namespace paged_stream {

// A weight from pack_linear_weight or pack_quantized_weight, and its bias.
struct PackedWeight {
  const void* data;
  const void* bias;  // [out_features] in the activations' dtype, or null
  int64_t in_features;
  int64_t out_features;
  std::vector<QuantizedPart> parts;  // none of a weight in the activations' dtype

  // Checks the tensors for activations of dtype `dtype`.
  static PackedWeight read(const Checker& check, const Tensor& packed_weight,
                           const std::optional<Tensor>& bias, int64_t out_features,
                           ScalarType dtype);
};

// Rows of activations, `stride` elements apart.
struct LinearInput {
  const void* data;
  int64_t rows;
  int64_t stride;
  DType dtype;
};

// Computes out = input W^T + bias, contiguous, in float32 if float_out or else in input.dtype.
void run_linear(const LinearInput& input, const PackedWeight& weight, void* out, bool float_out);

}  // namespace paged_stream
