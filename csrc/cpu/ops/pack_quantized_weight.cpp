// Packs a quantised GGUF weight, unchanged in value, into the order that the linear kernels read.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <cstring>
#include <string>

#include "checks.h"
#include "kernels/quantized_linear.h"
#include "ops/panels.h"

namespace paged_stream {
namespace {

GroupFormat group_format(const std::string& name) {
  if (name == "Q4_0") return GroupFormat::kQ4_0;
  if (name == "Q4_1") return GroupFormat::kQ4_1;
  STD_TORCH_CHECK(name == "Q8_0", "pack_quantized_weight: format must be Q4_0, Q4_1 or Q8_0, got ",
                  name);
  return GroupFormat::kQ8_0;
}

// Packs one row's group into its column of a panel's group. A panel's group has the scales of all
// columns, then their mins, then their codes, four bytes of each column in turn.
void pack_group(const GroupLayout& layout, const uint8_t* src, int64_t column, uint8_t* panel) {
  std::memcpy(panel + 2 * column, src, 2);
  src += 2, panel += 2 * kLinearPanel;
  if (layout.has_min) {
    std::memcpy(panel + 2 * column, src, 2);
    src += 2, panel += 2 * kLinearPanel;
  }
  for (int i = 0; i < layout.code_bytes(); ++i) {
    // The byte dot product needs unsigned codes.
    panel[(i / 4 * kLinearPanel + column) * 4 + i % 4] = layout.bits == 8 ? src[i] ^ 0x80 : src[i];
  }
}

// Packs [out, groups * bytes] into [panels, groups, panel * bytes], padding out with zero scales.
Tensor pack_quantized_weight(Tensor groups, std::string format) {
  constexpr Checker check("pack_quantized_weight");
  const GroupLayout layout = group_layout(group_format(format));
  check.shape(groups, "groups", "[out_features, in_features / 32 * group_bytes]", {kAny, kAny});
  check.dtype(groups, "groups", ScalarType::Byte);
  check.dense(groups, "groups", 0);
  const int64_t out_features = groups.size(0), bytes = layout.bytes();
  check.in_range(out_features, 0, kMaxCount, "out_features");
  check.require(groups.size(1) > 0 && groups.size(1) % bytes == 0,
                "groups must have rows of a positive multiple of ", bytes, " bytes for ", format,
                ", got ", groups.size(1));
  const int64_t num_groups = groups.size(1) / bytes, panel_bytes = kLinearPanel * bytes;
  Tensor packed =
      torch::stable::new_zeros(groups, {num_panels(out_features), num_groups, panel_bytes});
  const auto* src = static_cast<const uint8_t*>(groups.data_ptr());
  auto* dst = static_cast<uint8_t*>(packed.data_ptr());
  for_each_row(out_features, [&](int64_t panel, int64_t column, int64_t row) {
    for (int64_t b = 0; b < num_groups; ++b) {
      pack_group(layout, src + (row * num_groups + b) * bytes, column,
                 dst + (panel * num_groups + b) * panel_bytes);
    }
  });
  return packed;
}

}  // namespace
}  // namespace paged_stream

STABLE_TORCH_LIBRARY_IMPL(paged_stream, CPU, m) {
  m.impl("pack_quantized_weight", TORCH_BOX(&paged_stream::pack_quantized_weight));
}
