// The gated activation, silu(gate) * up.

#include <torch/csrc/stable/library.h>

#include "checks.h"
#include "isa/kernel_table.h"
#include "ops/elementwise.h"

namespace paged_stream {
namespace {

Tensor silu_and_mul(Tensor gate_up) {
  constexpr Checker check("silu_and_mul");
  check.gate_up(gate_up);
  const int64_t rows = gate_up.size(0), dim = gate_up.size(1) / 2;
  Tensor out = torch::stable::new_empty(gate_up, {rows, dim});
  run_silu_and_mul(gate_up.data_ptr(), out.data_ptr(), rows, dim, dtype_of(gate_up));
  return out;
}

}  // namespace

void run_silu_and_mul(const void* gate_up, void* out, int64_t rows, int64_t dim, DType dtype) {
  const SiluAndMulFn run = kernels().silu_and_mul[static_cast<int>(dtype)];
  for_rows(rows, dim, [&](int64_t begin, int64_t end) { run(gate_up, out, dim, begin, end); });
}

}  // namespace paged_stream

STABLE_TORCH_LIBRARY_IMPL(paged_stream, CPU, m) {
  m.impl("silu_and_mul", TORCH_BOX(&paged_stream::silu_and_mul));
}
