// Adding what LoRA adapters give to the products of a step.

#include "ops/add_adapters.h"

#include <torch/csrc/stable/library.h>

#include <utility>

#include "dtype.h"
#include "isa/kernel_table.h"
#include "threads/parallel.h"

namespace paged_stream {
namespace {

constexpr int64_t kMinWorkPerThread = 1 << 16;  // multiply-adds

void add_adapters(Tensor out, Tensor input, std::vector<int64_t> adapters, Tensor row_adapters,
                  int64_t layer, int64_t projection) {
  constexpr Checker check("add_adapters");
  check.shape(out, "out", "[T, out_features]", {kAny, kAny});
  const int64_t rows = out.size(0), out_features = out.size(1);
  check.in_range(rows, 0, kMaxCount, "tokens of out");
  check.in_range(out_features, 1, kMaxCount, "out_features of out");
  check.kv_dtype(out, "out");
  check.dense(out, "out", 0);
  check.shape(input, "input", "[T, in_features]", {rows, kAny});
  check.in_range(input.size(1), 1, kMaxCount, "in_features of input");
  check.dtype(input, "input", out.scalar_type());
  check.dense(input, "input", 1);
  check.same_device(input, "input", out);
  check.in_range(layer, 0, kMaxLayers - 1, "layer");
  check.in_range(projection, 0, kNumProjections - 1, "projection");
  const auto step =
      StepAdapters::read(check, adapters, row_adapters, rows, out.scalar_type(), kAny);
  const auto place = static_cast<Projection>(projection);
  for (const auto& adapter : step.adapters()) {
    adapter->check_fits(check, layer, place, input.size(1), out_features);
  }
  step.add(layer, place, {input.data_ptr(), rows, row_stride(input), dtype_of(input)},
           out.data_ptr(), out_features);
}

}  // namespace

StepAdapters StepAdapters::read(const Checker& check, const std::vector<int64_t>& handles,
                                const std::optional<Tensor>& row_adapters, int64_t rows,
                                ScalarType dtype, int64_t num_layers) {
  StepAdapters step;
  check.require(handles.empty() || row_adapters.has_value(),
                "row_adapters must be given with adapters");
  for (const int64_t handle : handles) {
    auto adapter = Adapter::of_handle(check, handle);
    check.dtype_is(adapter->dtype, "the weights of an adapter", dtype);
    check.require(num_layers == kAny || adapter->num_layers() == num_layers,
                  "an adapter must have ", num_layers, " layers, got ", adapter->num_layers());
    step.adapters_.push_back(std::move(adapter));
  }
  if (!row_adapters) return step;
  check.defined(*row_adapters, "row_adapters");
  check.require(row_adapters->is_cpu(), "row_adapters must be on the CPU");
  check.shape(*row_adapters, "row_adapters", "[T]", {rows});
  check.dtype(*row_adapters, "row_adapters", ScalarType::Int);
  check.dense(*row_adapters, "row_adapters", 0);
  const auto* indices = row_adapters->const_data_ptr<int32_t>();
  for (int64_t row = 0; row < rows; ++row) {
    check.in_range(indices[row], -1, static_cast<int64_t>(handles.size()) - 1,
                   "an index of row_adapters");
    if (indices[row] >= 0) step.rows_.push_back({row, step.adapters_[indices[row]].get()});
  }
  return step;
}

void StepAdapters::add(int64_t layer, Projection projection, const LinearInput& input, void* out,
                       int64_t out_features) const {
  int64_t work = 0;
  for (const Row& row : rows_) {
    for (const LowRank& part : row.adapter->of(layer, projection)) {
      work += part.rank * (part.in_features + part.columns);
    }
  }
  if (work == 0) return;
  const LowRankFn run = kernels().low_rank[static_cast<int>(input.dtype)];
  const int64_t size = input.dtype == DType::kFloat32 ? 4 : 2;
  for_each_item(static_cast<int64_t>(rows_.size()), work, kMinWorkPerThread, [&](int64_t item) {
    static thread_local GrowingBuffer<float> products;
    const auto& [row, adapter] = rows_[item];
    const char* x = static_cast<const char*>(input.data) + row * input.stride * size;
    for (const LowRank& part : adapter->of(layer, projection)) {
      char* columns = static_cast<char*>(out) + (row * out_features + part.first_column) * size;
      run({x, part.down, part.up, columns, products.get(part.rank), part.rank, part.in_features,
           part.columns, part.scaling});
    }
  });
}

}  // namespace paged_stream

STABLE_TORCH_LIBRARY_IMPL(paged_stream, CPU, m) {
  m.impl("add_adapters", TORCH_BOX(&paged_stream::add_adapters));
}
