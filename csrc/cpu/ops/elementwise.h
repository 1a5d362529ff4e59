// Row-wise operations on plain pointers, shared by the launchers.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <optional>

#include "checks.h"
#include "dtype.h"
#include "kernels/elementwise.h"
#include "threads/parallel.h"

namespace paged_stream {

constexpr int64_t kMinElementsPerThread = 1 << 14;

// Calls run(begin, end) for ranges of rows of `columns` elements, in parallel if there are many.
template <class Run>
void for_rows(int64_t rows, int64_t columns, const Run& run) {
  if (columns == 0) return;
  const int64_t grain = std::max<int64_t>(1, kMinElementsPerThread / std::max<int64_t>(columns, 1));
  for_each_range(rows, grain, run);
}

// Checked arguments of add_rms_norm: residual and delta or none [rows, dim]; float32 weight [dim].
struct RmsNormInput {
  RmsNormArgs args;  // with `out` unset
  int64_t rows;
  DType dtype;

  static RmsNormInput read(const Checker& check, const Tensor& residual,
                           const std::optional<Tensor>& delta, const Tensor& weight, double eps);

  int64_t element_size() const { return dtype == DType::kFloat32 ? 4 : 2; }

  RmsNormArgs into(void* out) const {
    RmsNormArgs filled = args;
    filled.out = out;
    return filled;
  }
};

void run_rms_norm(const RmsNormArgs& args, int64_t rows, DType dtype);

// gate_up: [rows, 2 * dim]; out: [rows, dim].
void run_silu_and_mul(const void* gate_up, void* out, int64_t rows, int64_t dim, DType dtype);

}  // namespace paged_stream
