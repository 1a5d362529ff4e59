// Launcher of the sampler. Parameters are not read on the host, so only their form is checked.

#include "sample_tokens_kernel.cuh"
#include "tensors.cuh"

namespace paged_stream {
namespace {

Tensor sample_tokens(Tensor logits, Tensor temperature, Tensor min_p, Tensor top_k, Tensor top_p,
                     Tensor seeds, Tensor positions) {
  constexpr Checker check("sample_tokens");
  check.sampling(logits, temperature, min_p, top_k, top_p, seeds, positions);
  const int64_t rows = logits.size(0);
  Tensor tokens = torch::stable::new_empty(logits, {rows}, ScalarType::Long);
  const SampleTokensParams params{
      logits.const_data_ptr<float>(),
      logits.stride(0),
      rows,
      static_cast<int>(logits.size(1)),
      temperature.const_data_ptr<double>(),
      min_p.const_data_ptr<double>(),
      top_p.const_data_ptr<double>(),
      top_k.const_data_ptr<int64_t>(),
      seeds.const_data_ptr<int64_t>(),
      positions.const_data_ptr<int64_t>(),
      tokens.mutable_data_ptr<int64_t>(),
  };
  const DeviceScope device(logits);
  run_sample_tokens(params, device.stream());
  return tokens;
}

}  // namespace
}  // namespace paged_stream

STABLE_TORCH_LIBRARY_IMPL(paged_stream, CUDA, m) {
  m.impl("sample_tokens", TORCH_BOX(&paged_stream::sample_tokens));
}
