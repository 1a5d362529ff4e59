// Copies whole KV blocks in every layer.

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cstring>
#include <unordered_set>
#include <vector>

#include "ops/cache_rows.h"
#include "threads/parallel.h"

namespace paged_stream {
namespace {

// Checks that no destination occurs twice or is also a source: copies may then run in any order.
void check_block_mapping(const Checker& check, const std::vector<int64_t>& pairs,
                         int64_t num_blocks) {
  const auto n = static_cast<int64_t>(pairs.size()) / 2;
  std::unordered_set<int64_t> destinations;
  for (int64_t i = 0; i < 2 * n; ++i) {
    check.require(pairs[i] >= 0 && pairs[i] < num_blocks, "block_mapping must lie in [0, ",
                  num_blocks, "), got ", pairs[i], " in pair ", i / 2);
    const bool is_new = i % 2 == 0 || destinations.insert(pairs[i]).second;
    check.require(is_new, "block_mapping must not name destination ", pairs[i], " twice");
  }
  for (int64_t i = 0; i < n; ++i) {
    check.require(destinations.count(pairs[2 * i]) == 0, "block_mapping must not use block ",
                  pairs[2 * i], " both as a source and as a destination");
  }
}

void copy_blocks(const Tensor& kv_cache, const Tensor& block_mapping) {
  const Checker check("copy_blocks");
  check.copy_blocks(kv_cache, block_mapping);
  const int64_t n = block_mapping.size(0), num_blocks = kv_cache.size(2);
  // A copy: the mapping may lie in memory that is written here.
  const auto* const mapping = block_mapping.const_data_ptr<int64_t>();
  const std::vector<int64_t> pairs(mapping, mapping + 2 * n);
  check_block_mapping(check, pairs, num_blocks);
  if (kv_cache.numel() == 0) return;
  const int64_t planes = kv_cache.size(0) * 2;
  const int64_t block_bytes = kv_cache.size(3) * kv_cache.size(4) * kv_cache.size(5) *
                              static_cast<int64_t>(kv_cache.element_size());
  char* data = bytes(kv_cache);
  const int64_t grain = std::max<int64_t>(1, kMinBytesPerThread / block_bytes);
  for_each_range(planes * n, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      char* plane = data + i / n * num_blocks * block_bytes;
      const int64_t* pair = pairs.data() + i % n * 2;
      std::memcpy(plane + pair[1] * block_bytes, plane + pair[0] * block_bytes, block_bytes);
    }
  });
}

}  // namespace
}  // namespace paged_stream

STABLE_TORCH_LIBRARY_IMPL(paged_stream, CPU, m) {
  m.impl("copy_blocks", TORCH_BOX(&paged_stream::copy_blocks));
}
