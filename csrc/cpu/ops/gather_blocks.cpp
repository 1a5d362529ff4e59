// Copies slots of the cache to contiguous keys and values.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <cstring>
#include <optional>
#include <tuple>
#include <vector>

#include "ops/cache_rows.h"
#include "threads/parallel.h"

namespace paged_stream {
namespace {

std::tuple<Tensor, Tensor> gather_blocks(const Tensor& k_cache, const Tensor& v_cache,
                                         const Tensor& slot_mapping,
                                         const std::optional<Tensor>& rotary, bool interleaved) {
  const Checker check("gather_blocks");
  check.cache_pair(k_cache, v_cache);
  const std::vector<int64_t> slots = read_slots(check, slot_mapping, kAny, k_cache);
  const int64_t n = slot_mapping.size(0);
  if (rotary) check.rotary(*rotary, "rotary", n, head_dim_of(k_cache), k_cache);
  const CacheShape shape(k_cache);
  const HeadMover mover(shape.dtype, shape.dtype, shape.head_dim);
  const int64_t heads = shape.num_kv_heads, stride = shape.head_stride();
  Tensor key = torch::stable::new_empty(k_cache, {n, heads, shape.row_size});
  Tensor value = torch::stable::new_empty(k_cache, {n, heads, shape.row_size});
  const Angles angles(rotary, interleaved);
  const char *k = const_bytes(k_cache), *v = const_bytes(v_cache);
  char *key_out = bytes(key), *value_out = bytes(value);
  const int64_t token_bytes = heads * shape.row_size * shape.element_size;
  for_each_range(n, shape.grain(2 * heads), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      char *key_row = key_out + i * token_bytes, *value_row = value_out + i * token_bytes;
      if (slots[i] < 0) {
        std::memset(key_row, 0, token_bytes);
        std::memset(value_row, 0, token_bytes);
        continue;
      }
      const int64_t offset = shape.slot_offset(slots[i]);
      mover.move(k + offset, stride, key_row, shape.row_size, heads, angles, i);
      mover.move(v + offset, stride, value_row, shape.row_size, heads, Angles(), i);
    }
  });
  return {key, value};
}

}  // namespace
}  // namespace paged_stream

STABLE_TORCH_LIBRARY_IMPL(paged_stream, CPU, m) {
  m.impl("gather_blocks", TORCH_BOX(&paged_stream::gather_blocks));
}
