// A LoRA adapter of a decoder, with weights as plain pointers.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "checks.h"

namespace paged_stream {

// The products of a layer that an adapter may add to.
enum class Projection { kQkv, kOutput, kUp, kDown };
constexpr int64_t kNumProjections = 4;
constexpr int64_t kMaxLayers = 1 << 16;

// Adds scaling * up^T (down x) to some columns of a product.
struct LowRank {
  const void* down;  // [rank, in_features]
  const void* up;    // [rank, columns]
  int64_t rank, in_features, first_column, columns;
  float scaling;
};

struct Adapter {
  ScalarType dtype;
  std::vector<std::vector<LowRank>> parts;  // by layer and projection
  std::vector<Tensor> weights;              // owner of the memory behind the pointers

  int64_t num_layers() const { return static_cast<int64_t>(parts.size()) / kNumProjections; }
  const std::vector<LowRank>& of(int64_t layer, Projection projection) const {
    return parts[layer * kNumProjections + static_cast<int64_t>(projection)];
  }
  static std::shared_ptr<const Adapter> of_handle(const Checker& check, int64_t handle);

  // Checks that the product has the sizes that the adapter was made for.
  void check_fits(const Checker& check, int64_t layer, Projection projection, int64_t in_features,
                  int64_t out_features) const;
};

}  // namespace paged_stream
