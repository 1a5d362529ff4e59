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

void pack_quantized_weight(const Tensor& out, std::vector<Tensor> blocks, std::string formats) {
  constexpr Checker check("pack_quantized_weight");
  check.require(!blocks.empty(), "blocks must have a tensor at least");
  std::vector<int64_t> rows;
  for (const Tensor& part : blocks) {
    check.shape(part, "blocks", "[rows, bytes]", {kAny, kAny});
    check.dtype(part, "blocks", ScalarType::Byte);
    check.dense(part, "blocks", 0);
    check.in_range(part.size(1), 1, kMaxCount, "bytes of a row of blocks");
    rows.push_back(part.size(0));
  }
  const BlockFormat* const first = find_block_format(formats.substr(0, formats.find(',')));
  const int64_t first_bytes = first == nullptr ? 1 : first->bytes;
  const int64_t step = first == nullptr ? 1 : group_layout(first->format).step_size();
  const int64_t in_features = blocks[0].size(1) / first_bytes * step;
  const QuantizedWeight weight = QuantizedWeight::plan(check, formats, rows, in_features);
  for (size_t i = 0; i < blocks.size(); ++i) {
    const BlockFormat& format = kBlockFormats[static_cast<int>(weight.parts[i].format)];
    const int64_t bytes = weight.parts[i].num_steps() * format.bytes;
    check.require(blocks[i].size(1) == bytes, "blocks must have rows of ", bytes, " bytes for ",
                  in_features, " numbers of ", format.name, ", got ", blocks[i].size(1));
  }
  check.shape(out, "out", "[bytes]", {weight.num_bytes});
  check.dtype(out, "out", ScalarType::Byte);
  check.dense(out, "out", 0);
  auto* const packed = static_cast<uint8_t*>(out.data_ptr());
  weight.write_header(packed);
  for (size_t i = 0; i < blocks.size(); ++i) pack_part(weight.parts[i], blocks[i], packed);
}

}  // namespace
}  // namespace paged_stream

STABLE_TORCH_LIBRARY_IMPL(paged_stream, CPU, m) {
  m.impl("pack_quantized_weight", TORCH_BOX(&paged_stream::pack_quantized_weight));
}
