// Packs a weight, once at loading, into the order in which the linear kernels read it.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <cstring>

#include "checks.h"
#include "ops/panels.h"

namespace paged_stream {
namespace {

// Packs [out, in] into [panels, in / step, panel, step], with out padded to whole panels by zeros.
// step is the number of consecutive k that share a 32-bit lane.
Tensor pack_linear_weight(Tensor weight) {
  constexpr Checker check("pack_linear_weight");
  check.shape(weight, "weight", "[out_features, in_features]", {kAny, kAny});
  check.kv_dtype(weight, "weight");
  check.dense(weight, "weight", 0);
  const int64_t out_features = weight.size(0), in_features = weight.size(1);
  check.in_range(out_features, 0, kMaxCount, "out_features");
  check.in_range(in_features, 0, kMaxCount, "in_features");
  const int64_t step = 4 / weight.element_size(), steps = in_features / step;
  check.require(in_features > 0 && in_features % step == 0,
                "in_features must be positive, and even for BFloat16, got ", in_features);
  Tensor packed =
      torch::stable::new_zeros(weight, {num_panels(out_features), steps, kLinearPanel, step});
  const auto* src = static_cast<const char*>(weight.data_ptr());
  auto* dst = static_cast<char*>(packed.data_ptr());
  for_each_row(out_features, [&](int64_t panel, int64_t column, int64_t row) {
    for (int64_t k = 0; k < steps; ++k) {
      std::memcpy(dst + ((panel * steps + k) * kLinearPanel + column) * 4,
                  src + (row * steps + k) * 4, 4);
    }
  });
  return packed;
}

}  // namespace
}  // namespace paged_stream

STABLE_TORCH_LIBRARY_IMPL(paged_stream, CPU, m) {
  m.impl("pack_linear_weight", TORCH_BOX(&paged_stream::pack_linear_weight));
}
