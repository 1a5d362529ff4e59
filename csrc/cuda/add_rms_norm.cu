// Launcher of add_rms_norm.

#include "add_rms_norm_kernel.cuh"
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

}  // namespace
}  // namespace paged_stream

STABLE_TORCH_LIBRARY_IMPL(paged_stream, CUDA, m) {
  m.impl("add_rms_norm", TORCH_BOX(&paged_stream::add_rms_norm));
}
