// The kernels' name for a tensor's dtype.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include "kernels.h"

namespace paged_stream {

// Of a tensor that was checked to have one of these.
inline DType dtype_of(const torch::stable::Tensor& t) {
  using torch::headeronly::ScalarType;
  if (t.scalar_type() == ScalarType::Char) return DType::kInt8;
  return t.scalar_type() == ScalarType::Float ? DType::kFloat32 : DType::kBFloat16;
}

}  // namespace paged_stream
