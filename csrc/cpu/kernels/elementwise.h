// The interface of the row-wise kernels.
#pragma once

#include <cstdint>

namespace paged_stream {

// Adds delta, if given, to the residual (rounded to the dtype), and normalises: out = residual /
// rms(residual) * weight.
struct RmsNormArgs {
  void* residual;     // [rows, dim], updated if delta is given
  const void* delta;  // [rows, dim] or null
  const float* weight;
  void* out;
  int64_t dim;
  float eps;
};
using RmsNormFn = void (*)(const RmsNormArgs&, int64_t row_begin, int64_t row_end);

// out = silu(gate) * up for rows of [gate, up], dim elements each.
using SiluAndMulFn = void (*)(const void* gate_up, void* out, int64_t dim, int64_t row_begin,
                              int64_t row_end);

}  // namespace paged_stream
