// Copies contiguous keys and values to slots of the cache.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <optional>
#include <vector>

#include "ops/cache_rows.h"
#include "threads/parallel.h"

namespace paged_stream {
namespace {

void scatter_blocks(const Tensor& key, const Tensor& value, const Tensor& k_cache,
                    const Tensor& v_cache, const Tensor& slot_mapping,
                    const std::optional<Tensor>& rotary, bool interleaved) {
  const Checker check("scatter_blocks");
  check.cache_pair(k_cache, v_cache);
  check.cache_rows(key, "key", kAny, k_cache);
  const int64_t n = key.size(0);
  check.cache_rows(value, "value", n, k_cache);
  if (rotary) check.rotary(*rotary, "rotary", n, head_dim_of(k_cache), k_cache);
  const std::vector<int64_t> slots = read_slots(check, slot_mapping, n, k_cache);
  const SlotWriter writer(heads_of(key), heads_of(value), dtype_of(key), key.size(2), k_cache,
                          v_cache, slots, Angles(rotary, interleaved));
  for_each_range(n, writer.shape.grain(2 * k_cache.size(1)), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) writer.write(i);
  });
}

}  // namespace
}  // namespace paged_stream

STABLE_TORCH_LIBRARY_IMPL(paged_stream, CPU, m) {
  m.impl("scatter_blocks", TORCH_BOX(&paged_stream::scatter_blocks));
}
