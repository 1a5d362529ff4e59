// Laying a LoRA adapter out for later steps.

#include "ops/adapter.h"

#include <torch/csrc/stable/library.h>

#include <utility>

#include "ops/registry.h"

namespace paged_stream {
namespace {

using Handles = Registry<Adapter>;
using Tensors = std::vector<Tensor>;

constexpr int64_t kMaxRank = 1 << 12;

// weights: down [rank, in_features] and up [rank, columns] of one part after the other. places:
// layer, projection and first column of each. scalings: float32, of each.
int64_t lay_out_adapter(Tensors weights, std::vector<int64_t> places, Tensor scalings,
                        int64_t num_layers, bool is_bfloat16) {
  constexpr Checker check("lay_out_adapter");
  const int64_t count = static_cast<int64_t>(weights.size()) / 2;
  check.in_range(num_layers, 1, kMaxLayers, "num_layers");
  check.require(
      count > 0 && weights.size() == static_cast<size_t>(2 * count) &&
          places.size() == static_cast<size_t>(3 * count),
      "weights must have 2 tensors and places 3 numbers for each of at least 1 part, got ",
      weights.size(), " and ", places.size());
  check.defined(scalings, "scalings");
  check.require(scalings.is_cpu(), "scalings must be on the CPU");
  check.shape(scalings, "scalings", "[parts]", {count});
  check.dtype(scalings, "scalings", ScalarType::Float);
  check.dense(scalings, "scalings", 0);
  Adapter adapter;
  adapter.dtype = is_bfloat16 ? ScalarType::BFloat16 : ScalarType::Float;
  adapter.parts.resize(num_layers * kNumProjections);
  for (int64_t i = 0; i < count; ++i) {
    const Tensor &down = weights[2 * i], &up = weights[2 * i + 1];
    check.shape(down, "down", "[rank, in_features]", {kAny, kAny});
    check.in_range(down.size(0), 1, kMaxRank, "rank");
    check.in_range(down.size(1), 1, kMaxCount, "in_features of down");
    check.shape(up, "up", "[rank, columns]", {down.size(0), kAny});
    check.in_range(up.size(1), 1, kMaxCount, "columns of up");
    for (const Tensor& each : {down, up}) {
      check.same_device(each, "a weight", scalings);
      check.dtype(each, "a weight", adapter.dtype);
      check.dense(each, "a weight", 0);
    }
    const int64_t layer = places[3 * i], projection = places[3 * i + 1],
                  first_column = places[3 * i + 2];
    check.in_range(layer, 0, num_layers - 1, "layer");
    check.in_range(projection, 0, kNumProjections - 1, "projection");
    check.in_range(first_column, 0, kMaxCount, "first column");
    adapter.parts[layer * kNumProjections + projection].push_back(
        {down.data_ptr(), up.data_ptr(), down.size(0), down.size(1), first_column, up.size(1),
         scalings.const_data_ptr<float>()[i]});
  }
  adapter.weights = std::move(weights);
  return Handles::instance().add(std::make_shared<const Adapter>(std::move(adapter)));
}

void free_adapter(int64_t adapter) { Handles::instance().remove(adapter); }

}  // namespace

std::shared_ptr<const Adapter> Adapter::of_handle(const Checker& check, int64_t handle) {
  return Handles::instance().get(check, "an adapter", "lay_out_adapter", handle);
}

void Adapter::check_fits(const Checker& check, int64_t layer, Projection projection,
                         int64_t in_features, int64_t out_features) const {
  check.require(layer < num_layers(), "an adapter has ", num_layers(), " layers, and none ", layer);
  for (const LowRank& part : of(layer, projection)) {
    check.require(
        part.in_features == in_features && part.first_column + part.columns <= out_features,
        "an adapter maps ", part.in_features, " features to columns ", part.first_column, " to ",
        part.first_column + part.columns, " of a product that maps ", in_features, " to ",
        out_features);
  }
}

}  // namespace paged_stream

STABLE_TORCH_LIBRARY_IMPL(paged_stream, CPU, m) {
  m.impl("lay_out_adapter", TORCH_BOX(&paged_stream::lay_out_adapter));
}

STABLE_TORCH_LIBRARY_IMPL(paged_stream, CompositeExplicitAutograd, m) {
  m.impl("free_adapter", TORCH_BOX(&paged_stream::free_adapter));
}
