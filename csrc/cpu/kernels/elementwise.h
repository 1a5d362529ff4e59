// Row-wise operations, as launchers ask for them.
#pragma once

#include <cstdint>

namespace paged_stream {

// Adds the delta to the residual (rounding to the dtype), when there is one, and normalises:
// out = residual / rms(residual) * weight.
struct RmsNormArgs {
  void* residual;     // [rows, dim], changed when delta is given
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
