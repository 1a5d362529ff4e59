// y = x W^T + b with a weight that was packed once: validation, packing, work sharing.

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cstring>

#include "checks.h"
#include "kernels.h"
#include "parallel.h"

namespace paged_stream {
namespace {

constexpr int64_t kMinWorkPerThread = 1 << 15;  // multiply-adds
// Rows that one item takes, so that its part of x stays in the second-level cache.
constexpr int64_t kRowsPerItem = 96;

// Consecutive k that share a 32-bit lane of the packed weight.
int64_t k_per_lane(const Tensor& t) { return 4 / t.element_size(); }

// [out, in] to [panels, in / step, panel, step], out padded to whole panels with zeros.
Tensor pack_linear_weight(Tensor weight) {
  constexpr Checker check("pack_linear_weight");
  check.shape(weight, "weight", "[out_features, in_features]", {kAny, kAny});
  check.kv_dtype(weight, "weight");
  check.dense(weight, "weight", 0);
  const int64_t out_features = weight.size(0), in_features = weight.size(1);
  const int64_t step = k_per_lane(weight), steps = in_features / step;
  check.require(in_features % step == 0,
                "in_features must be even for BFloat16, got " + std::to_string(in_features));
  const int64_t panels = (out_features + kLinearPanel - 1) / kLinearPanel;
  Tensor packed = torch::stable::new_zeros(weight, {panels, steps, kLinearPanel, step});
  const auto* src = static_cast<const char*>(weight.data_ptr());
  auto* dst = static_cast<char*>(packed.data_ptr());
  torch::stable::parallel_for(0, panels, 1, [&](int64_t begin, int64_t end) {
    for (int64_t panel = begin; panel < end; ++panel) {
      const int64_t columns = std::min<int64_t>(kLinearPanel, out_features - panel * kLinearPanel);
      for (int64_t c = 0; c < columns; ++c) {
        const char* row = src + (panel * kLinearPanel + c) * in_features * weight.element_size();
        for (int64_t k = 0; k < steps; ++k) {
          std::memcpy(dst + ((panel * steps + k) * kLinearPanel + c) * 4, row + k * 4, 4);
        }
      }
    }
  });
  return packed;
}

Tensor linear(Tensor input, Tensor packed_weight, std::optional<Tensor> bias, int64_t out_features,
              bool float_output) {
  constexpr Checker check("linear");
  check.kv_dtype(packed_weight, "packed_weight");
  const int64_t step = k_per_lane(packed_weight);
  const int64_t panels = (out_features + kLinearPanel - 1) / kLinearPanel;
  check.shape(packed_weight, "packed_weight", "[panels, in_features / step, 16, step]",
              {panels, kAny, kLinearPanel, step});
  check.dense(packed_weight, "packed_weight", 0);
  const int64_t in_features = packed_weight.size(1) * step;
  check.shape(input, "input", "[T, in_features]", {kAny, in_features});
  check.dtype(input, "input", packed_weight.scalar_type());
  check.dense(input, "input", 1);
  if (bias) {
    check.shape(*bias, "bias", "[out_features]", {out_features});
    check.dtype(*bias, "bias", packed_weight.scalar_type());
    check.dense(*bias, "bias", 0);
  }
  const int64_t rows = input.size(0);
  const ScalarType out_type = float_output ? ScalarType::Float : input.scalar_type();
  Tensor out = torch::stable::new_empty(input, {rows, out_features}, out_type);
  const bool is_float = input.scalar_type() == ScalarType::Float;
  const LinearFn run = linear_kernel(is_float ? DType::kFloat32 : DType::kBFloat16);

  LinearArgs args{};
  args.x = input.data_ptr();
  args.x_stride = input.stride(0);
  args.weight = packed_weight.data_ptr();
  args.bias = bias ? bias->data_ptr() : nullptr;
  args.out = out.data_ptr();
  args.in_features = in_features;
  args.out_features = out_features;
  args.float_out = float_output || is_float;

  const int64_t groups = (panels + kLinearPanelsPerItem - 1) / kLinearPanelsPerItem;
  const int64_t row_blocks = (rows + kRowsPerItem - 1) / kRowsPerItem;
  const int64_t work = rows * in_features * out_features;
  for_each_item(groups * row_blocks, work, kMinWorkPerThread, [&](int64_t item) {
    LinearArgs part = args;
    part.panel_begin = item % groups * kLinearPanelsPerItem;
    part.panel_end = std::min(part.panel_begin + kLinearPanelsPerItem, panels);
    part.row_begin = item / groups * kRowsPerItem;
    part.row_end = std::min(part.row_begin + kRowsPerItem, rows);
    run(part);
  });
  return out;
}

}  // namespace
}  // namespace paged_stream

STABLE_TORCH_LIBRARY_IMPL(paged_stream, CPU, m) {
  m.impl("pack_linear_weight", TORCH_BOX(&paged_stream::pack_linear_weight));
  m.impl("linear", TORCH_BOX(&paged_stream::linear));
}
