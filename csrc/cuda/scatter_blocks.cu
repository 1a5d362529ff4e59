// Launcher of scatter_blocks.

#include "cache_rows.cuh"

namespace paged_stream {
namespace {

void scatter_blocks(Tensor key, Tensor value, Tensor k_cache, Tensor v_cache, Tensor slot_mapping,
                    std::optional<Tensor> rotary, bool interleaved) {
  constexpr Checker check("scatter_blocks");
  check.cache_pair(k_cache, v_cache);
  check.cache_rows(key, "key", kAny, k_cache);
  const int64_t n = key.size(0);
  check.cache_rows(value, "value", n, k_cache);
  count_of(check, slot_mapping, n, k_cache);
  if (rotary) check.rotary(*rotary, "rotary", n, head_dim_of(k_cache), k_cache);
  check.require(n <= 1 || key.stride(0) == value.stride(0),
                "key and value must have the same stride between tokens, got ", key.stride(0),
                " and ", value.stride(0));
  const RowSide from{key.data_ptr(), value.data_ptr(), row_stride(key), false};
  const RowSide to{k_cache.data_ptr(), v_cache.data_ptr(), 0, true};
  move_rows(check, from, to, k_cache, slot_mapping, rotary, interleaved);
}

}  // namespace
}  // namespace paged_stream

STABLE_TORCH_LIBRARY_IMPL(paged_stream, CUDA, m) {
  m.impl("scatter_blocks", TORCH_BOX(&paged_stream::scatter_blocks));
}
