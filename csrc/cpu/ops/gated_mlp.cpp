// The gated feed-forward block of a layer in one op: in decoding, calls cost as much as arithmetic.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "ops/blocks.h"
#include "threads/parallel.h"

namespace paged_stream {
namespace {

Tensor gated_mlp(Tensor residual, std::optional<Tensor> delta, Tensor norm_weight, double eps,
                 Tensor up_weight, std::optional<Tensor> up_bias, Tensor down_weight,
                 std::optional<Tensor> down_bias, int64_t intermediate_size) {
  constexpr Checker check("gated_mlp");
  const RmsNormInput norm = RmsNormInput::read(check, residual, delta, norm_weight, eps);
  const ScalarType dtype = residual.scalar_type();
  const GatedMlp block{PackedWeight::read(check, up_weight, up_bias, 2 * intermediate_size, dtype),
                       PackedWeight::read(check, down_weight, down_bias, norm.args.dim, dtype),
                       intermediate_size};
  block.check_sizes(check, norm.args.dim);
  Tensor out = torch::stable::empty_like(residual);
  if (norm.rows > 0) block.run(norm, out.data_ptr());
  return out;
}

}  // namespace

void GatedMlp::check_sizes(const Checker& check, int64_t dim) const {
  check.require(up.in_features == dim && down.in_features == intermediate_size,
                "up_weight must take ", dim, " inputs and down_weight ", intermediate_size,
                ", got ", up.in_features, " and ", down.in_features);
}

void GatedMlp::run(const RmsNormInput& norm, void* out) const {
  const int64_t rows = norm.rows, dim = norm.args.dim, size = norm.element_size();
  static thread_local GrowingBuffer<char> normed_buffer, gate_up_buffer;
  char* normed = normed_buffer.get(rows * dim * size);
  char* gate_up = gate_up_buffer.get(rows * 3 * intermediate_size * size);
  char* activated = gate_up + rows * 2 * intermediate_size * size;
  run_rms_norm(norm.into(normed), rows, norm.dtype);
  run_linear({normed, rows, dim, norm.dtype}, up, gate_up, false);
  run_silu_and_mul(gate_up, activated, rows, intermediate_size, norm.dtype);
  run_linear({activated, rows, intermediate_size, norm.dtype}, down, out, false);
}

}  // namespace paged_stream

STABLE_TORCH_LIBRARY_IMPL(paged_stream, CPU, m) {
  m.impl("gated_mlp", TORCH_BOX(&paged_stream::gated_mlp));
}
