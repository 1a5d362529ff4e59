// The size of a packed quantised weight.

#include <torch/csrc/stable/library.h>

#include <string>
#include <vector>

#include "checks.h"
#include "ops/quantized_weight.h"

namespace paged_stream {
namespace {

int64_t quantized_weight_bytes(std::vector<int64_t> rows, int64_t in_features,
                               std::string formats) {
  constexpr Checker check("quantized_weight_bytes");
  return QuantizedWeight::plan(check, formats, rows, in_features).num_bytes;
}

}  // namespace
}  // namespace paged_stream

STABLE_TORCH_LIBRARY_IMPL(paged_stream, CompositeExplicitAutograd, m) {
  m.impl("quantized_weight_bytes", TORCH_BOX(&paged_stream::quantized_weight_bytes));
}
