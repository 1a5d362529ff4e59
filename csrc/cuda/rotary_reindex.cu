// Launcher of rotary_reindex.

#include "cache_rows.cuh"

namespace paged_stream {
namespace {

void rotary_reindex(Tensor k_cache, Tensor slot_mapping, Tensor rotary, bool interleaved) {
  constexpr Checker check("rotary_reindex");
  check.cache(k_cache, "k_cache");
  const int64_t n = count_of(check, slot_mapping, kAny, k_cache);
  check.rotary(rotary, "rotary", n, head_dim_of(k_cache), k_cache);
  const RowSide keys{k_cache.data_ptr(), nullptr, 0, true};
  move_rows(check, keys, keys, k_cache, slot_mapping, rotary, interleaved);
}

}  // namespace
}  // namespace paged_stream

STABLE_TORCH_LIBRARY_IMPL(paged_stream, CUDA, m) {
  m.impl("rotary_reindex", TORCH_BOX(&paged_stream::rotary_reindex));
}
