// Rows of a packed quantised weight, as the numbers that they stand for.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <cstring>

#include "checks.h"
#include "dtype.h"
#include "number_types.h"
#include "ops/quantized_weight.h"
#include "threads/parallel.h"

namespace paged_stream {
namespace {

uint16_t round_to_bfloat16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  if (value != value) return static_cast<uint16_t>(bits >> 16 | 0x40);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

const QuantizedPart& part_of(const QuantizedWeight& weight, int64_t row) {
  size_t i = 0;
  while (row >= weight.parts[i].first_row + weight.parts[i].rows) ++i;
  return weight.parts[i];
}

void write_row(const QuantizedPart& part, const uint8_t* packed, int64_t row, DType dtype,
               char* out) {
  const GroupLayout layout = part.layout();
  const int64_t at = row - part.first_row, size = layout.step_size();
  const uint8_t* step = packed + part.offset + at / kLinearPanel * part.panel_bytes();
  float values[256];
  for (int64_t i = 0; i < part.num_steps(); ++i, step += part.step_bytes()) {
    unpack_values(layout, step, at % kLinearPanel, values);
    if (dtype == DType::kFloat32) {
      std::memcpy(out + i * size * 4, values, size * 4);
      continue;
    }
    for (int64_t k = 0; k < size; ++k) {
      const uint16_t rounded = round_to_bfloat16(values[k]);
      std::memcpy(out + (i * size + k) * 2, &rounded, 2);
    }
  }
}

Tensor embedding_rows(const Tensor& ids, const Tensor& packed_weight, int64_t in_features,
                      bool is_bfloat16) {
  constexpr Checker check("embedding_rows");
  const QuantizedWeight weight = QuantizedWeight::read(check, packed_weight);
  check.require(weight.in_features == in_features, "packed_weight must have rows of ", in_features,
                " numbers, got ", weight.in_features);
  check.metadata(ids, "ids", ScalarType::Long, "[T]", {kAny}, packed_weight);
  const int64_t count = ids.size(0);
  check.in_range(count, 0, kMaxCount, "the number of ids");
  const auto* const rows = ids.const_data_ptr<int64_t>();
  for (int64_t t = 0; t < count; ++t) {
    check.in_range(rows[t], 0, weight.out_features - 1, "ids[", t, "]");
  }
  const DType dtype = is_bfloat16 ? DType::kBFloat16 : DType::kFloat32;
  Tensor out = torch::stable::new_empty(packed_weight, {count, weight.in_features},
                                        is_bfloat16 ? ScalarType::BFloat16 : ScalarType::Float);
  const auto* const packed = static_cast<const uint8_t*>(packed_weight.data_ptr());
  auto* const to = static_cast<char*>(out.data_ptr());
  const int64_t row_bytes = weight.in_features * (is_bfloat16 ? 2 : 4);
  for_each_range(count, 8, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      write_row(part_of(weight, rows[t]), packed, rows[t], dtype, to + t * row_bytes);
    }
  });
  return out;
}

}  // namespace
}  // namespace paged_stream

STABLE_TORCH_LIBRARY_IMPL(paged_stream, CPU, m) {
  m.impl("embedding_rows", TORCH_BOX(&paged_stream::embedding_rows));
}
