// Launcher of sample_tokens. The host does not read the parameters, so it checks only their form.

#include <vector>

#include "sample_tokens_kernel.cuh"
#include "sampling_checks.h"
#include "tensors.cuh"

namespace paged_stream {
namespace {

Tensor sample_tokens(Tensor logits, std::vector<Tensor> sampling, Tensor positions) {
  constexpr Checker check("sample_tokens");
  const SamplingParameters parameters = read_sampling(check, logits, sampling, positions);
  const int64_t rows = logits.size(0);
  Tensor tokens = torch::stable::new_empty(logits, {rows}, ScalarType::Long);
  const SampleTokensParams params{
      logits.const_data_ptr<float>(),   row_stride(logits), rows,
      static_cast<int>(logits.size(1)), parameters,         tokens.mutable_data_ptr<int64_t>(),
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
