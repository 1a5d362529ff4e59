// Packs quantised weights, unchanged in value, into the order that the linear kernels read.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <cstring>
#include <string>
#include <vector>

#include "checks.h"
#include "ops/panels.h"
#include "ops/quantized_weight.h"

namespace paged_stream {
namespace {

// blocks: [rows, steps * block bytes].
void pack_part(const QuantizedPart& part, const Tensor& blocks, uint8_t* packed) {
  const GroupLayout layout = part.layout();
  const int64_t block_bytes = kBlockFormats[static_cast<int>(part.format)].bytes;
  const auto* from = static_cast<const uint8_t*>(blocks.data_ptr());
  uint8_t* const to = packed + part.offset;
  for_each_range(num_panels(part.rows), 1, [&](int64_t begin, int64_t end) {
    std::memset(to + begin * part.panel_bytes(), 0, (end - begin) * part.panel_bytes());
  });
  for_each_row(part.rows, [&](int64_t panel, int64_t column, int64_t row) {
    Block block;
    for (int64_t step = 0; step < part.num_steps(); ++step) {
      read_block(part.format, from + (row * part.num_steps() + step) * block_bytes, block);
      pack_block(layout, block, column, to + panel * part.panel_bytes() + step * part.step_bytes());
    }
  });
}

// The part that a row is in.
const QuantizedPart& part_of(const QuantizedWeight& weight, int64_t row) {
  size_t i = 0;
  while (row >= weight.parts[i].first_row + weight.parts[i].rows) ++i;
  return weight.parts[i];
}

void pack_quantized_weight(const Tensor& out, const Tensor& blocks, int64_t first_row,
                           std::vector<int64_t> rows, int64_t in_features, std::string formats) {
  constexpr Checker check("pack_quantized_weight");
  const QuantizedWeight weight = QuantizedWeight::plan(check, formats, rows, in_features);
  check.shape(out, "out", "[bytes]", {weight.num_bytes});
  check.dtype(out, "out", ScalarType::Byte);
  check.dense(out, "out", 0);
  check.in_range(first_row, 0, weight.out_features - 1, "first_row");
  QuantizedPart part = part_of(weight, first_row);
  const BlockFormat& format = kBlockFormats[static_cast<int>(part.format)];
  check.shape(blocks, "blocks", "[rows, bytes]", {kAny, kAny});
  check.dtype(blocks, "blocks", ScalarType::Byte);
  check.dense(blocks, "blocks", 0);
  const int64_t bytes = part.num_steps() * format.bytes;
  check.require(blocks.size(1) == bytes, "blocks must have rows of ", bytes, " bytes for ",
                in_features, " numbers of ", format.name, ", got ", blocks.size(1));
  const int64_t before = first_row - part.first_row;
  const int64_t count = blocks.size(0);
  check.in_range(count, 1, part.rows - before, "rows of blocks from row ", first_row);
  check.require(
      before % kLinearPanel == 0 && (count % kLinearPanel == 0 || before + count == part.rows),
      "blocks must be whole groups of ", kLinearPanel, " rows, or end with their part, ",
      "got rows ", before, " to ", before + count, " of ", part.rows);
  part.offset += before / kLinearPanel * part.panel_bytes();
  part.rows = count;
  auto* const packed = static_cast<uint8_t*>(out.data_ptr());
  weight.write_header(packed);
  pack_part(part, blocks, packed);
}

}  // namespace
}  // namespace paged_stream

STABLE_TORCH_LIBRARY_IMPL(paged_stream, CPU, m) {
  m.impl("pack_quantized_weight", TORCH_BOX(&paged_stream::pack_quantized_weight));
}
