// Launcher of silu_and_mul.

#include "silu_and_mul_kernel.cuh"
#include "tensors.cuh"

namespace paged_stream {
namespace {

Tensor silu_and_mul(Tensor gate_up) {
  constexpr Checker check("silu_and_mul");
  check.gate_up(gate_up);
  const int64_t rows = gate_up.size(0), dim = gate_up.size(1) / 2;
  Tensor out = torch::stable::new_empty(gate_up, {rows, dim});
  const DeviceScope device(gate_up);
  run_silu_and_mul({gate_up.data_ptr(), out.data_ptr(), rows, dim, dtype_of(gate_up)},
                   device.stream());
  return out;
}

}  // namespace
}  // namespace paged_stream

STABLE_TORCH_LIBRARY_IMPL(paged_stream, CUDA, m) {
  m.impl("silu_and_mul", TORCH_BOX(&paged_stream::silu_and_mul));
}
