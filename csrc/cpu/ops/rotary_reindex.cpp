// Rotates cached keys in place.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <vector>

#include "ops/cache_rows.h"
#include "threads/parallel.h"

namespace paged_stream {
namespace {

void rotary_reindex(const Tensor& k_cache, const Tensor& slot_mapping, const Tensor& rotary,
                    bool interleaved) {
  const Checker check("rotary_reindex");
  check.cache(k_cache, "k_cache");
  const std::vector<int64_t> slots = read_slots(check, slot_mapping, kAny, k_cache);
  const int64_t n = slot_mapping.size(0);
  check.rotary(rotary, "rotary", n, head_dim_of(k_cache), k_cache);
  const CacheShape shape(k_cache);
  const HeadMover mover(shape.dtype, shape.dtype, shape.head_dim);
  const Angles angles(rotary, interleaved);
  char* k = bytes(k_cache);
  const int64_t stride = shape.head_stride();
  for_each_range(n, shape.grain(shape.num_kv_heads), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      if (slots[i] < 0) continue;
      char* row = k + shape.slot_offset(slots[i]);
      mover.move(row, stride, row, stride, shape.num_kv_heads, angles, i);
    }
  });
}

}  // namespace
}  // namespace paged_stream

STABLE_TORCH_LIBRARY_IMPL(paged_stream, CPU, m) {
  m.impl("rotary_reindex", TORCH_BOX(&paged_stream::rotary_reindex));
}
