// Launcher of rotary_table.

#include "rotary_table_kernel.cuh"
#include "tensors.cuh"

namespace paged_stream {
namespace {

Tensor rotary_table(Tensor positions, Tensor inv_freq, double scaling) {
  constexpr Checker check("rotary_table");
  check.metadata(positions, "positions", ScalarType::Long, "[T]", {kAny}, positions);
  check.metadata(inv_freq, "inv_freq", ScalarType::Double, "[rotary_dim / 2]", {kAny}, positions);
  const int64_t rows = positions.size(0), half = inv_freq.size(0);
  Tensor table = torch::stable::new_empty(positions, {rows, 2 * half}, ScalarType::Float);
  const RotaryTableParams params{positions.const_data_ptr<int64_t>(),
                                 inv_freq.const_data_ptr<double>(),
                                 scaling,
                                 table.mutable_data_ptr<float>(),
                                 rows,
                                 half};
  const DeviceScope device(positions);
  run_rotary_table(params, device.stream());
  return table;
}

}  // namespace
}  // namespace paged_stream

STABLE_TORCH_LIBRARY_IMPL(paged_stream, CUDA, m) {
  m.impl("rotary_table", TORCH_BOX(&paged_stream::rotary_table));
}
