// Launcher of rotary_and_cache.

#include "cache_rows.cuh"

namespace paged_stream {
namespace {

void rotary_and_cache(Tensor query, std::optional<Tensor> sink_query, Tensor key, Tensor value,
                      Tensor k_cache, Tensor v_cache, Tensor rotary,
                      std::optional<Tensor> sink_rotary, Tensor slot_mapping, bool interleaved) {
  constexpr Checker check("rotary_and_cache");
  check.rotary_and_cache(query, sink_query, key, value, k_cache, v_cache, rotary, sink_rotary);
  const int num_tokens = count_of(check, slot_mapping, query.size(0), k_cache);
  const RotaryAndCacheParams params{
      heads_of(query),
      sink_query ? heads_of(*sink_query) : TokenHeads{nullptr, 0},
      heads_of(key),
      heads_of(value),
      k_cache.data_ptr(),
      v_cache.data_ptr(),
      geometry_of(check, k_cache),
      angles_of(rotary),
      angles_of(sink_rotary),
      slot_mapping.const_data_ptr<int64_t>(),
      num_tokens,
      static_cast<int>(query.size(1)),
      shape_of(k_cache, rotary, interleaved),
      dtype_of(query),
      dtype_of(k_cache),
  };
  const DeviceScope device(query);
  run_rotary_and_cache(params, device.stream());
}

}  // namespace
}  // namespace paged_stream

STABLE_TORCH_LIBRARY_IMPL(paged_stream, CUDA, m) {
  m.impl("rotary_and_cache", TORCH_BOX(&paged_stream::rotary_and_cache));
}
