// Launchers of the fused row-wise operations.

#include "elementwise_kernel.cuh"
#include "tensors.cuh"

namespace paged_stream {
namespace {

Tensor add_rms_norm(Tensor residual, std::optional<Tensor> delta, Tensor weight, double eps) {
  constexpr Checker check("add_rms_norm");
  check.rms_norm(residual, delta, weight);
  const int64_t rows = residual.size(0), dim = residual.size(1);
  check.require(dim <= kMaxNormDim, "dim must be at most ", kMaxNormDim, " on CUDA, got ", dim);
  Tensor out = torch::stable::empty_like(residual);
  const RmsNormParams params{residual.data_ptr(),
                             delta ? delta->data_ptr() : nullptr,
                             weight.const_data_ptr<float>(),
                             out.data_ptr(),
                             rows,
                             static_cast<int>(dim),
                             static_cast<float>(eps),
                             dtype_of(residual)};
  const DeviceScope device(residual);
  run_add_rms_norm(params, device.stream());
  return out;
}

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
  m.impl("add_rms_norm", TORCH_BOX(&paged_stream::add_rms_norm));
  m.impl("silu_and_mul", TORCH_BOX(&paged_stream::silu_and_mul));
}
