// A weight in blocks of GGUF in the order in which the linear kernels read it, without changing a
// number.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <cstring>
#include <string>

#include "checks.h"
#include "kernels/quantized_linear.h"
#include "ops/panels.h"

namespace paged_stream {
namespace {

BlockFormat block_format(const std::string& name) {
  if (name == "Q4_0") return BlockFormat::kQ4_0;
  if (name == "Q4_1") return BlockFormat::kQ4_1;
  STD_TORCH_CHECK(name == "Q8_0", "pack_quantized_weight: format must be Q4_0, Q4_1 or Q8_0, got ",
                  name);
  return BlockFormat::kQ8_0;
}

// One row's block into its column of a panel's block: the scales of all columns come first, then
// their mins, then their codes, four bytes of each column in turn.
void pack_block(const BlockLayout& layout, const uint8_t* src, int64_t column, uint8_t* panel) {
  std::memcpy(panel + 2 * column, src, 2);
  src += 2, panel += 2 * kLinearPanel;
  if (layout.has_min) {
    std::memcpy(panel + 2 * column, src, 2);
    src += 2, panel += 2 * kLinearPanel;
  }
  for (int i = 0; i < layout.code_bytes(); ++i) {
    // The multiplication takes unsigned codes.
    panel[(i / 4 * kLinearPanel + column) * 4 + i % 4] = layout.bits == 8 ? src[i] ^ 0x80 : src[i];
  }
}

// [out, blocks * bytes] to [panels, blocks, panel * bytes], out padded with scales of zero.
Tensor pack_quantized_weight(Tensor blocks, std::string format) {
  constexpr Checker check("pack_quantized_weight");
  const BlockLayout layout = block_layout(block_format(format));
  check.shape(blocks, "blocks", "[out_features, in_features / 32 * block_bytes]", {kAny, kAny});
  check.dtype(blocks, "blocks", ScalarType::Byte);
  check.dense(blocks, "blocks", 0);
  const int64_t out_features = blocks.size(0), bytes = layout.bytes();
  check.require(blocks.size(1) > 0 && blocks.size(1) % bytes == 0,
                "blocks must have rows of a positive multiple of ", bytes, " bytes for ", format,
                ", got ", blocks.size(1));
  const int64_t num_blocks = blocks.size(1) / bytes, panel_bytes = kLinearPanel * bytes;
  Tensor packed =
      torch::stable::new_zeros(blocks, {num_panels(out_features), num_blocks, panel_bytes});
  const auto* src = static_cast<const uint8_t*>(blocks.data_ptr());
  auto* dst = static_cast<uint8_t*>(packed.data_ptr());
  for_each_row(out_features, [&](int64_t panel, int64_t column, int64_t row) {
    for (int64_t b = 0; b < num_blocks; ++b) {
      pack_block(layout, src + (row * num_blocks + b) * bytes, column,
                 dst + (panel * num_blocks + b) * panel_bytes);
    }
  });
  return packed;
}

}  // namespace
}  // namespace paged_stream

STABLE_TORCH_LIBRARY_IMPL(paged_stream, CPU, m) {
  m.impl("pack_quantized_weight", TORCH_BOX(&paged_stream::pack_quantized_weight));
}
