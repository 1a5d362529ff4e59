// Launchers of the ops that write, read and turn rows of the cache. Slots are not read on the host:
// those that no cache has are skipped like -1.

#include <tuple>

#include "cache_rows_kernel.cuh"
#include "tensors.cuh"

namespace paged_stream {
namespace {

CacheGeometry geometry_of(const Checker& check, const Tensor& cache) {
  const CacheGeometry geometry{cache.size(0) * cache.size(2), cache.size(2), cache.stride(0),
                               cache.size(3), static_cast<int>(cache.size(1))};
  const bool fits = is_aligned(cache.data_ptr(), 4) &&
                    divides(4, geometry.block_stride * static_cast<int64_t>(cache.element_size()));
  check.require(!is_quantized(cache) || fits,
                "blocks of a cache of Char must begin at multiples "
                "of 4 bytes");
  return geometry;
}

RowShape shape_of(const Tensor& cache, const std::optional<Tensor>& rotary, bool interleaved) {
  return {static_cast<int>(head_dim_of(cache)), rotary ? static_cast<int>(rotary->size(1) / 2) : 0,
          interleaved};
}

const float* angles_of(const std::optional<Tensor>& rotary) {
  return rotary ? rotary->const_data_ptr<float>() : nullptr;
}

// How many tokens a mapping names.
int count_of(const Checker& check, const Tensor& slot_mapping, int64_t rows, const Tensor& cache) {
  check.metadata(slot_mapping, "slot_mapping", ScalarType::Long, "[T]", {rows}, cache);
  check.require(slot_mapping.size(0) <= INT32_MAX, "slot_mapping must have fewer than 2^31 slots");
  return static_cast<int>(slot_mapping.size(0));
}

TokenHeads heads_of(const Tensor& t) { return {t.data_ptr(), t.stride(0)}; }

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

// Moves rows between two sides, of which one at least is the cache.
void move_rows(const Checker& check, const RowSide& from, const RowSide& to, const Tensor& cache,
               const Tensor& slot_mapping, const std::optional<Tensor>& rotary, bool interleaved) {
  const int count = count_of(check, slot_mapping, kAny, cache);
  const MoveRowsParams params{from,
                              to,
                              geometry_of(check, cache),
                              angles_of(rotary),
                              slot_mapping.const_data_ptr<int64_t>(),
                              count,
                              shape_of(cache, rotary, interleaved),
                              dtype_of(cache)};
  const DeviceScope device(cache);
  run_move_rows(params, device.stream());
}

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
                "key and value must have the same stride between tokens");
  const RowSide from{key.data_ptr(), value.data_ptr(), key.stride(0), false};
  const RowSide to{k_cache.data_ptr(), v_cache.data_ptr(), 0, true};
  move_rows(check, from, to, k_cache, slot_mapping, rotary, interleaved);
}

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
  m.impl("rotary_and_cache", TORCH_BOX(&paged_stream::rotary_and_cache));
  m.impl("gather_blocks", TORCH_BOX(&paged_stream::gather_blocks));
  m.impl("scatter_blocks", TORCH_BOX(&paged_stream::scatter_blocks));
  m.impl("rotary_reindex", TORCH_BOX(&paged_stream::rotary_reindex));
}
