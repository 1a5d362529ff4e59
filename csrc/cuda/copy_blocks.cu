// Launcher of copy_blocks. The host does not read the mapping: pairs outside the cache are skipped.

#include "copy_blocks_kernel.cuh"
#include "tensors.cuh"

namespace paged_stream {
namespace {

void copy_blocks(Tensor kv_cache, Tensor block_mapping) {
  constexpr Checker check("copy_blocks");
  check.copy_blocks(kv_cache, block_mapping);
  const CopyBlocksParams params{
      kv_cache.data_ptr(),
      kv_cache.size(0) * 2,
      kv_cache.size(2),
      kv_cache.size(3) * kv_cache.size(4) * kv_cache.size(5) *
          static_cast<int64_t>(kv_cache.element_size()),
      block_mapping.const_data_ptr<int64_t>(),
      block_mapping.size(0),
  };
  const DeviceScope device(kv_cache);
  run_copy_blocks(params, device.stream());
}

}  // namespace
}  // namespace paged_stream

STABLE_TORCH_LIBRARY_IMPL(paged_stream, CUDA, m) {
  m.impl("copy_blocks", TORCH_BOX(&paged_stream::copy_blocks));
}
