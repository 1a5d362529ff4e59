// Maps a tensor's dtype to the kernels' DType.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include "number_types.h"

namespace paged_stream {

// The tensor's dtype must have been checked to be one of these.
inline DType dtype_of(const torch::stable::Tensor& t) {
  using torch::headeronly::ScalarType;
  switch (t.scalar_type()) {
    case ScalarType::Float:
      return DType::kFloat32;
    case ScalarType::BFloat16:
      return DType::kBFloat16;
    case ScalarType::Half:
      return DType::kFloat16;
    case ScalarType::Float8_e4m3fn:
      return DType::kFloat8;
    default:
      return DType::kInt8;
  }
}

}  // namespace paged_stream
