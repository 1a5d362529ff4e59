#include "ops/quantized_weight.h"

#include <cstring>

#include "ops/panels.h"

namespace paged_stream {
namespace {

constexpr uint32_t kMagic = 0x57515350;  // "PSQW"

struct Header {
  uint32_t magic;
  int32_t num_parts;
  int64_t in_features;
  struct {
    int32_t format, rows;
  } parts[kMaxQuantizedParts];
};
static_assert(sizeof(Header) <= kQuantizedHeaderBytes);

// Adds a part behind the others.
void add(const Checker& check, QuantizedWeight& weight, GroupFormat format, int64_t rows) {
  check.in_range(rows, 1, kMaxCount - weight.out_features, "rows of a part");
  check.require(weight.out_features % kLinearPanel == 0,
                "every part but the last must have a "
                "multiple of ",
                kLinearPanel, " rows, got ", weight.out_features, " before another");
  const QuantizedPart part{format, weight.out_features, rows, weight.in_features, weight.num_bytes};
  const int64_t step = part.layout().step_size();
  check.require(weight.in_features % step == 0, "in_features must be a multiple of ", step, " for ",
                kBlockFormats[static_cast<int>(format)].name, ", got ", weight.in_features);
  weight.parts.push_back(part);
  weight.out_features += rows;
  weight.num_bytes += num_panels(rows) * part.panel_bytes();
}

std::vector<std::string> split(const std::string& names) {
  std::vector<std::string> parts(1);
  for (const char c : names) {
    if (c == ',') {
      parts.emplace_back();
    } else {
      parts.back() += c;
    }
  }
  return parts;
}

}  // namespace

QuantizedWeight QuantizedWeight::plan(const Checker& check, const std::string& formats,
                                      const std::vector<int64_t>& rows, int64_t in_features) {
  const std::vector<std::string> names = split(formats);
  check.require(names.size() == rows.size() && rows.size() <= kMaxQuantizedParts,
                "there must be 1 to ", kMaxQuantizedParts, " parts with a format each, got ",
                rows.size(), " and the formats ", formats);
  check.in_range(in_features, 1, kMaxCount, "in_features");
  QuantizedWeight weight{{}, in_features, 0, kQuantizedHeaderBytes};
  for (size_t i = 0; i < rows.size(); ++i) {
    const BlockFormat* const format = find_block_format(names[i]);
    std::string known;
    for (const BlockFormat& each : kBlockFormats) known += std::string(" ") + each.name;
    check.require(format != nullptr, "format must be one of", known, ", got ", names[i]);
    add(check, weight, format->format, rows[i]);
  }
  return weight;
}

QuantizedWeight QuantizedWeight::read(const Checker& check, const Tensor& packed_weight) {
  check.shape(packed_weight, "packed_weight", "[bytes]", {kAny});
  check.dtype(packed_weight, "packed_weight", ScalarType::Byte);
  check.dense(packed_weight, "packed_weight", 0);
  Header header{};
  const int64_t num_bytes = packed_weight.numel();
  if (num_bytes >= kQuantizedHeaderBytes) {
    std::memcpy(&header, packed_weight.data_ptr(), sizeof(header));
  }
  check.require(
      header.magic == kMagic && header.num_parts >= 1 && header.num_parts <= kMaxQuantizedParts,
      "packed_weight of dtype Byte must come from pack_quantized_weight");
  check.in_range(header.in_features, 1, kMaxCount, "in_features of packed_weight");
  QuantizedWeight weight{{}, header.in_features, 0, kQuantizedHeaderBytes};
  for (int i = 0; i < header.num_parts; ++i) {
    check.in_range(header.parts[i].format, 0, kNumGroupFormats - 1, "a format of packed_weight");
    add(check, weight, static_cast<GroupFormat>(header.parts[i].format), header.parts[i].rows);
  }
  check.require(weight.num_bytes == num_bytes, "packed_weight must have ", weight.num_bytes,
                " bytes, got ", num_bytes);
  return weight;
}

void QuantizedWeight::write_header(uint8_t* to) const {
  Header header{kMagic, static_cast<int32_t>(parts.size()), in_features, {}};
  for (size_t i = 0; i < parts.size(); ++i) {
    header.parts[i] = {static_cast<int32_t>(parts[i].format), static_cast<int32_t>(parts[i].rows)};
  }
  std::memset(to, 0, kQuantizedHeaderBytes);
  std::memcpy(to, &header, sizeof(header));
}

}  // namespace paged_stream
