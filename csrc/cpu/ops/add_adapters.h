// What the LoRA adapters of a step's rows add to the products of a decoder.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "checks.h"
#include "ops/adapter.h"
#include "ops/linear.h"

namespace paged_stream {

// The adapters of a step's rows.
class StepAdapters {
 public:
  // handles: from lay_out_adapter. row_adapters: which of them each row has, -1 for none.
  static StepAdapters read(const Checker& check, const std::vector<int64_t>& handles,
                           const std::optional<Tensor>& row_adapters, int64_t rows,
                           ScalarType dtype, int64_t num_layers);

  const std::vector<std::shared_ptr<const Adapter>>& adapters() const { return adapters_; }
  // Adds to a product, [input.rows, out_features], what the adapters of its rows give for input.
  void add(int64_t layer, Projection projection, const LinearInput& input, void* out,
           int64_t out_features) const;

 private:
  struct Row {
    int64_t index;
    const Adapter* adapter;
  };
  std::vector<std::shared_ptr<const Adapter>> adapters_;
  std::vector<Row> rows_;  // those that have one
};

// The adapters of a step in one of its layers.
struct LayerAdapters {
  const StepAdapters& step;
  int64_t layer;

  void add(Projection projection, const LinearInput& input, void* out, int64_t out_features) const {
    step.add(layer, projection, input, out, out_features);
  }
};

}  // namespace paged_stream
