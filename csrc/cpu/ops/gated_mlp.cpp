// The gated MLP half of a layer as one op: in decoding, calls cost as much as arithmetic.

#include "ops/gated_mlp.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "ops/registry.h"
#include "threads/parallel.h"

namespace paged_stream {
namespace {

// weights: norm; packed [gate, up]; its bias or none; packed down; its bias or none.
int64_t lay_out_gated_mlp(LayerWeights weights, double eps, bool is_bfloat16) {
  constexpr Checker check("lay_out_gated_mlp");
  check_weights(check, weights, 5, {2, 4});
  const ScalarType dtype = model_dtype(is_bfloat16);
  const InputNorm norm = InputNorm::read(check, *weights[0], eps, dtype);
  const auto down = PackedWeight::read(check, *weights[3], weights[4], norm.dim, dtype);
  const int64_t intermediate_size = down.in_features;
  check.in_range(intermediate_size, 1, kMaxCount / 2, "in_features of down_weight");
  const auto up = PackedWeight::read(check, *weights[1], weights[2], 2 * intermediate_size, dtype);
  check.require(up.in_features == norm.dim, "in_features of gate_up_weight must be ", norm.dim,
                ", got ", up.in_features);
  GatedMlp mlp{norm, up, down, intermediate_size, std::move(weights)};
  return Registry<GatedMlp>::instance().add(std::make_shared<const GatedMlp>(std::move(mlp)));
}

void free_gated_mlp(int64_t mlp) { Registry<GatedMlp>::instance().remove(mlp); }

Tensor gated_mlp(Tensor residual, std::optional<Tensor> delta, int64_t mlp) {
  constexpr Checker check("gated_mlp");
  const auto of = GatedMlp::of_handle(check, mlp);
  const RmsNormInput input = of->norm.of(check, residual, delta);
  Tensor out = torch::stable::empty_like(residual);
  if (input.rows > 0) of->run(input, {StepAdapters(), 0}, out.data_ptr());
  return out;
}

}  // namespace

std::shared_ptr<const GatedMlp> GatedMlp::of_handle(const Checker& check, int64_t handle) {
  return Registry<GatedMlp>::instance().get(check, "mlp", "lay_out_gated_mlp", handle);
}

void GatedMlp::run(const RmsNormInput& input, const LayerAdapters& adapters, void* out) const {
  const int64_t rows = input.rows, dim = norm.dim, size = input.element_size();
  static thread_local GrowingBuffer<char> normed_buffer, gate_up_buffer;
  char* normed = normed_buffer.get(rows * dim * size);
  char* gate_up = gate_up_buffer.get(rows * 3 * intermediate_size * size);
  char* activated = gate_up + rows * 2 * intermediate_size * size;
  run_rms_norm(input.into(normed), rows, input.dtype);
  const LinearInput in{normed, rows, dim, input.dtype};
  run_linear(in, up, gate_up, false);
  adapters.add(Projection::kUp, in, gate_up, up.out_features);
  run_silu_and_mul(gate_up, activated, rows, intermediate_size, input.dtype);
  const LinearInput inner{activated, rows, intermediate_size, input.dtype};
  run_linear(inner, down, out, false);
  adapters.add(Projection::kDown, inner, out, down.out_features);
}

}  // namespace paged_stream

STABLE_TORCH_LIBRARY_IMPL(paged_stream, CPU, m) {
  m.impl("lay_out_gated_mlp", TORCH_BOX(&paged_stream::lay_out_gated_mlp));
  m.impl("gated_mlp", TORCH_BOX(&paged_stream::gated_mlp));
}

STABLE_TORCH_LIBRARY_IMPL(paged_stream, CompositeExplicitAutograd, m) {
  m.impl("free_gated_mlp", TORCH_BOX(&paged_stream::free_gated_mlp));
}
