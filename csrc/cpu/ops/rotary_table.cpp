// Cosines and sines of positions, computed in float64 and rounded once.

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cmath>

#include "checks.h"
#include "threads/parallel.h"

namespace paged_stream {
namespace {

constexpr int64_t kMinAnglesPerThread = 1 << 10;

Tensor rotary_table(Tensor positions, Tensor inv_freq, double scaling) {
  constexpr Checker check("rotary_table");
  check.metadata(positions, "positions", ScalarType::Long, "[T]", {kAny}, positions);
  check.metadata(inv_freq, "inv_freq", ScalarType::Double, "[rotary_dim / 2]", {kAny}, positions);
  const int64_t rows = positions.size(0), half = inv_freq.size(0);
  Tensor table = torch::stable::new_empty(positions, {rows, 2 * half}, ScalarType::Float);
  const auto* at = positions.const_data_ptr<int64_t>();
  const auto* freq = inv_freq.const_data_ptr<double>();
  auto* out = table.mutable_data_ptr<float>();
  const int64_t grain = std::max<int64_t>(1, kMinAnglesPerThread / std::max<int64_t>(1, half));
  for_each_range(rows, grain, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      float* const cosines = out + row * 2 * half;
      for (int64_t i = 0; i < half; ++i) {
        const double angle = static_cast<double>(at[row]) * freq[i];
        cosines[i] = static_cast<float>(std::cos(angle) * scaling);
        cosines[half + i] = static_cast<float>(std::sin(angle) * scaling);
      }
    }
  });
  return table;
}

}  // namespace
}  // namespace paged_stream

STABLE_TORCH_LIBRARY_IMPL(paged_stream, CPU, m) {
  m.impl("rotary_table", TORCH_BOX(&paged_stream::rotary_table));
}
