// A packed quantised weight: a header, then one part or several of rows of one format each.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <string>
#include <vector>

#include "checks.h"
#include "ops/quantized_blocks.h"

namespace paged_stream {

constexpr int kMaxQuantizedParts = 4;
constexpr int64_t kQuantizedHeaderBytes = 64;

// Rows first_row to first_row + rows of a weight. Every part but the last has whole panels.
struct QuantizedPart {
  GroupFormat format;
  int64_t first_row;
  int64_t rows;
  int64_t in_features;
  int64_t offset;  // bytes from the start of the packed weight

  GroupLayout layout() const { return group_layout(format); }
  int64_t num_steps() const { return in_features / layout().step_size(); }
  int64_t step_bytes() const { return layout().step_bytes() * kLinearPanel; }
  int64_t panel_bytes() const { return num_steps() * step_bytes(); }
};

struct QuantizedWeight {
  std::vector<QuantizedPart> parts;
  int64_t in_features = 0;
  int64_t out_features = 0;
  int64_t num_bytes = 0;

  // Lays parts out one after the other; `formats` are names with commas between them.
  static QuantizedWeight plan(const Checker& check, const std::string& formats,
                              const std::vector<int64_t>& rows, int64_t in_features);
  // Reads and checks the header of a packed weight.
  static QuantizedWeight read(const Checker& check, const Tensor& packed_weight);
  void write_header(uint8_t* to) const;
};

}  // namespace paged_stream
