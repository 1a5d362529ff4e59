// Adds the delta to the residual stream and normalises the sum, fused.

#include <torch/csrc/stable/library.h>

#include "checks.h"
#include "isa/kernel_table.h"
#include "ops/elementwise.h"

namespace paged_stream {
namespace {

Tensor add_rms_norm(Tensor residual, std::optional<Tensor> delta, Tensor weight, double eps) {
  constexpr Checker check("add_rms_norm");
  const RmsNormInput norm = RmsNormInput::read(check, residual, delta, weight, eps);
  Tensor out = torch::stable::empty_like(residual);
  run_rms_norm(norm.into(out.data_ptr()), norm.rows, norm.dtype);
  return out;
}

}  // namespace

RmsNormInput RmsNormInput::read(const Checker& check, const Tensor& residual,
                                const std::optional<Tensor>& delta, const Tensor& weight,
                                double eps) {
  check.rms_norm(residual, delta, weight);
  const int64_t rows = residual.size(0), dim = residual.size(1);
  const RmsNormArgs args{residual.data_ptr(),
                         delta ? delta->data_ptr() : nullptr,
                         weight.const_data_ptr<float>(),
                         nullptr,
                         dim,
                         static_cast<float>(eps)};
  return {args, rows, dtype_of(residual)};
}

void run_rms_norm(const RmsNormArgs& args, int64_t rows, DType dtype) {
  const RmsNormFn run = kernels().rms_norm[static_cast<int>(dtype)];
  for_rows(rows, args.dim, [&](int64_t begin, int64_t end) { run(args, begin, end); });
}

}  // namespace paged_stream

STABLE_TORCH_LIBRARY_IMPL(paged_stream, CPU, m) {
  m.impl("add_rms_norm", TORCH_BOX(&paged_stream::add_rms_norm));
}
