// Launcher of gather_blocks.

#include <tuple>

#include "cache_rows.cuh"

namespace paged_stream {
namespace {

std::tuple<Tensor, Tensor> gather_blocks(Tensor k_cache, Tensor v_cache, Tensor slot_mapping,
                                         std::optional<Tensor> rotary, bool interleaved) {
  constexpr Checker check("gather_blocks");
  check.cache_pair(k_cache, v_cache);
  const int64_t n = count_of(check, slot_mapping, kAny, k_cache);
  if (rotary) check.rotary(*rotary, "rotary", n, head_dim_of(k_cache), k_cache);
  const int64_t heads = k_cache.size(1), row_size = k_cache.size(3);
  Tensor key = torch::stable::new_empty(k_cache, {n, heads, row_size});
  Tensor value = torch::stable::new_empty(k_cache, {n, heads, row_size});
  const RowSide from{k_cache.data_ptr(), v_cache.data_ptr(), 0, true};
  const RowSide to{key.data_ptr(), value.data_ptr(), heads * row_size, false};
  move_rows(check, from, to, k_cache, slot_mapping, rotary, interleaved);
  return {key, value};
}

}  // namespace
}  // namespace paged_stream

STABLE_TORCH_LIBRARY_IMPL(paged_stream, CUDA, m) {
  m.impl("gather_blocks", TORCH_BOX(&paged_stream::gather_blocks));
}
