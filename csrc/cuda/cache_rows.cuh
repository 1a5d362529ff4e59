// Shared by the launchers of the ops that write, read and rotate cache rows. The host does not read
// the slots; kernels skip slots outside the cache, as they skip -1.
#pragma once

#include "cache_rows_kernel.cuh"
#include "tensors.cuh"

namespace paged_stream {

inline CacheGeometry geometry_of(const Checker& check, const Tensor& cache) {
  const CacheGeometry geometry{cache.size(0) * cache.size(2), cache.size(2), row_stride(cache),
                               cache.size(3), static_cast<int>(cache.size(1))};
  const bool fits = is_aligned(cache.data_ptr(), 4) &&
                    divides(4, geometry.block_stride * static_cast<int64_t>(cache.element_size()));
  check.require(!is_quantized(cache) || fits,
                "the blocks of an int8 (Char) cache must be aligned to 4 bytes, got address ",
                reinterpret_cast<uintptr_t>(cache.data_ptr()), " and block stride ",
                geometry.block_stride);
  return geometry;
}

inline RowShape shape_of(const Tensor& cache, const std::optional<Tensor>& rotary,
                         bool interleaved) {
  return {static_cast<int>(head_dim_of(cache)), rotary ? static_cast<int>(rotary->size(1) / 2) : 0,
          interleaved};
}

inline const float* angles_of(const std::optional<Tensor>& rotary) {
  return rotary ? rotary->const_data_ptr<float>() : nullptr;
}

// Returns the number of tokens in a slot mapping.
inline int count_of(const Checker& check, const Tensor& slot_mapping, int64_t rows,
                    const Tensor& cache) {
  check.metadata(slot_mapping, "slot_mapping", ScalarType::Long, "[T]", {rows}, cache);
  check.require(slot_mapping.size(0) <= INT32_MAX,
                "slot_mapping must have fewer than 2^31 slots, got ", slot_mapping.size(0));
  return static_cast<int>(slot_mapping.size(0));
}

inline TokenHeads heads_of(const Tensor& t) { return {t.data_ptr(), row_stride(t)}; }

// Moves rows between two sides, at least one of which is the cache.
inline void move_rows(const Checker& check, const RowSide& from, const RowSide& to,
                      const Tensor& cache, const Tensor& slot_mapping,
                      const std::optional<Tensor>& rotary, bool interleaved) {
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

}  // namespace paged_stream
