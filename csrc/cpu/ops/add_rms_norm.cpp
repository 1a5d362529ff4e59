// Launchers of the fused row-wise operations.

#include "ops/elementwise.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>

#include "checks.h"
#include "threads/parallel.h"

namespace paged_stream {
namespace {

constexpr int64_t kMinElementsPerThread = 1 << 14;

// Calls run(begin, end) for rows of `columns` elements, in parallel when they are many.
template <class Run>
void for_rows(int64_t rows, int64_t columns, const Run& run) {
  const int64_t grain = std::max<int64_t>(1, kMinElementsPerThread / std::max<int64_t>(columns, 1));
  for_each_range(rows, grain, run);
}

Tensor add_rms_norm(Tensor residual, std::optional<Tensor> delta, Tensor weight, double eps) {
  constexpr Checker check("add_rms_norm");
  const RmsNormInput norm = RmsNormInput::read(check, residual, delta, weight, eps);
  Tensor out = torch::stable::empty_like(residual);
  run_rms_norm(norm.into(out.data_ptr()), norm.rows, norm.dtype);
  return out;
}

Tensor silu_and_mul(Tensor gate_up) {
  constexpr Checker check("silu_and_mul");
  check.gate_up(gate_up);
  const int64_t rows = gate_up.size(0), dim = gate_up.size(1) / 2;
  Tensor out = torch::stable::new_empty(gate_up, {rows, dim});
  run_silu_and_mul(gate_up.data_ptr(), out.data_ptr(), rows, dim, dtype_of(gate_up));
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

const float* norm_weight(const Checker& check, const Tensor& weight, int64_t dim) {
  check.shape(weight, "weight", "[dim]", {dim});
  check.dtype(weight, "weight", ScalarType::Float);
  check.dense(weight, "weight", 0);
  return weight.const_data_ptr<float>();
}

void run_rms_norm(const RmsNormArgs& args, int64_t rows, DType dtype) {
  const RmsNormFn run = kernels().rms_norm[static_cast<int>(dtype)];
  for_rows(rows, args.dim, [&](int64_t begin, int64_t end) { run(args, begin, end); });
}

void run_silu_and_mul(const void* gate_up, void* out, int64_t rows, int64_t dim, DType dtype) {
  const SiluAndMulFn run = kernels().silu_and_mul[static_cast<int>(dtype)];
  for_rows(rows, dim, [&](int64_t begin, int64_t end) { run(gate_up, out, dim, begin, end); });
}

}  // namespace paged_stream

STABLE_TORCH_LIBRARY_IMPL(paged_stream, CPU, m) {
  m.impl("add_rms_norm", TORCH_BOX(&paged_stream::add_rms_norm));
  m.impl("silu_and_mul", TORCH_BOX(&paged_stream::silu_and_mul));
}
