// The gated feed-forward block of a layer in one op: in decoding, calls cost as much as arithmetic.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "checks.h"
#include "elementwise.h"
#include "linear.h"
#include "parallel.h"

namespace paged_stream {
namespace {

// down(silu(gate(x)) * up(x)) of x = norm(residual += delta).
Tensor gated_mlp(Tensor residual, std::optional<Tensor> delta, Tensor norm_weight, double eps,
                 Tensor up_weight, std::optional<Tensor> up_bias, Tensor down_weight,
                 std::optional<Tensor> down_bias, int64_t intermediate_size) {
  constexpr Checker check("gated_mlp");
  const RmsNormInput norm = RmsNormInput::read(check, residual, delta, norm_weight, eps);
  const int64_t rows = norm.rows, dim = norm.args.dim;
  const ScalarType dtype = residual.scalar_type();
  const auto up = PackedWeight::read(check, up_weight, up_bias, 2 * intermediate_size, dtype);
  const auto down = PackedWeight::read(check, down_weight, down_bias, dim, dtype);
  check.require(up.in_features == dim && down.in_features == intermediate_size,
                "up_weight must take " + std::to_string(dim) + " inputs and down_weight " +
                    std::to_string(intermediate_size) + ", got " + std::to_string(up.in_features) +
                    " and " + std::to_string(down.in_features));
  Tensor out = torch::stable::empty_like(residual);
  const int64_t element_size = residual.element_size();
  static thread_local GrowingBuffer<char> normed_buffer, gate_up_buffer;
  char* normed = normed_buffer.get(rows * dim * element_size);
  char* gate_up = gate_up_buffer.get(rows * 3 * intermediate_size * element_size);
  char* activated = gate_up + rows * 2 * intermediate_size * element_size;
  run_rms_norm(norm.into(normed), rows, norm.dtype);
  run_linear({normed, rows, dim, norm.dtype}, up, gate_up, false);
  run_silu_and_mul(gate_up, activated, rows, intermediate_size, norm.dtype);
  run_linear({activated, rows, intermediate_size, norm.dtype}, down, out.data_ptr(), false);
  return out;
}

}  // namespace
}  // namespace paged_stream

STABLE_TORCH_LIBRARY_IMPL(paged_stream, CPU, m) {
  m.impl("gated_mlp", TORCH_BOX(&paged_stream::gated_mlp));
}
