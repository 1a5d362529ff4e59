// Kernels that write, read and rotate cache rows: rotary_and_cache, gather_blocks, scatter_blocks,
// rotary_reindex.
//
// Bytes: every head is read once and written once; a query that is rotated twice is written twice.
// Each token adds 4 * rotary_dim bytes of angles, which its heads share through the hardware
// caches, and 8 bytes of slot. Accesses are 16 bytes (4 in int8 rows), two in flight per lane.
// Occupancy: no shared memory and at most 64 registers, so at least 32 warps per SM. A decode step
// has (num_heads + 2 * num_kv_heads) * T rows, 8 lanes each for head_dim 128 in 2 bytes, which
// fills the chip from about T = 128. With fewer tokens, the time is that of one launch.
#pragma once

#include "head_rows.cuh"
#include "launch.cuh"

namespace paged_stream {

constexpr int kRowThreads = 256;

// The cache's geometry as kernels use it; strides in elements.
struct CacheGeometry {
  int64_t num_slots, block_size, block_stride, row_size;
  int num_kv_heads;

  PAGED_STREAM_INLINE int64_t offset(int64_t slot) const {
    return slot_offset(slot, block_size, block_stride, row_size);
  }
  // False for -1 and for slots outside the cache; these are not written.
  PAGED_STREAM_INLINE bool has(int64_t slot) const { return slot >= 0 && slot < num_slots; }
  PAGED_STREAM_INLINE int64_t head_stride() const { return block_size * row_size; }
};

// Heads of tokens outside the cache, contiguous within a token; stride between tokens, in elements.
struct TokenHeads {
  void* data;
  int64_t stride;
};

struct RotaryAndCacheParams {
  TokenHeads query, sink_query, key, value;  // sink_query.data may be null
  void *k_cache, *v_cache;
  CacheGeometry cache;
  const float *rotary, *sink_rotary;  // [num_tokens, 2 * shape.half]
  const int64_t* slots;
  int num_tokens, num_heads;
  RowShape shape;
  DType dtype, cache_dtype;
};

// The row of a group of lanes: `row` of the token's `rows_per_token` rows.
struct RowIndex {
  int64_t token;
  int row, lane;
};
__device__ __forceinline__ RowIndex row_index(int lanes, int rows_per_token) {
  const unsigned index = blockIdx.x * (blockDim.x / lanes) + threadIdx.x / lanes;
  const unsigned token = index / rows_per_token;
  return {token, static_cast<int>(index - token * rows_per_token),
          static_cast<int>(threadIdx.x) % lanes};
}

template <class T, class Cache, int E>
__global__ void __launch_bounds__(kRowThreads)
    rotary_and_cache_kernel(const RotaryAndCacheParams p, int lanes) {
  const int kv_heads = p.cache.num_kv_heads;
  const auto [token, index, lane] = row_index(lanes, p.num_heads + 2 * kv_heads);
  const bool exists = token < p.num_tokens, is_query = index < p.num_heads;
  const bool is_value = index >= p.num_heads + kv_heads;
  const int head = index - (is_query ? 0 : is_value ? p.num_heads + kv_heads : p.num_heads);
  const int64_t slot = exists && !is_query ? p.slots[token] : -1;
  const bool is_cached = p.cache.has(slot);
  RowShape shape = p.shape;
  if (is_value) shape.half = 0;
  HeadRow<E> row{};
  const TokenHeads& source = is_query ? p.query : is_value ? p.value : p.key;
  T* const from = static_cast<T*>(source.data) + token * source.stride + head * shape.head_dim;
  if (exists && (is_query || is_cached)) row.load(from, shape, lane, lanes);
  if (exists && is_query && p.sink_query.data != nullptr) {
    HeadRow<E> sink = row;
    sink.turn(p.sink_rotary + token * 2 * shape.half, shape, lane, lanes);
    T* const to = static_cast<T*>(p.sink_query.data) + token * p.sink_query.stride;
    sink.store(to + head * shape.head_dim, shape, lane, lanes);
  }
  if (exists) row.turn(p.rotary + token * 2 * shape.half, shape, lane, lanes);
  if (exists && is_query) row.store(from, shape, lane, lanes);
  Cache* const to = static_cast<Cache*>(is_value ? p.v_cache : p.k_cache) +
                    (is_cached ? p.cache.offset(slot) + head * p.cache.head_stride() : 0);
  if constexpr (sizeof(Cache) == 1 && std::is_same_v<Cache, int8_t>) {
    const RowScale by = row.scale(shape, lane, lanes);
    if (is_cached) row.store_quantized(to, by, shape, lane, lanes);
  } else {
    if (is_cached) row.store(to, shape, lane, lanes);
  }
}

// One side of a copy of rows: slots of the cache, or dense rows of row_size elements.
struct RowSide {
  void *key, *value;     // value is null on both sides or on neither
  int64_t token_stride;  // in elements, for dense rows
  bool is_cache;

  template <class T>
  __device__ __forceinline__ T* row(const CacheGeometry& cache, bool is_value, int64_t token,
                                    int64_t slot, int head) const {
    T* const data = static_cast<T*>(is_value ? value : key);
    if (is_cache) return data + cache.offset(slot) + head * cache.head_stride();
    return data + token * token_stride + head * cache.row_size;
  }
};

struct MoveRowsParams {
  RowSide from, to;
  CacheGeometry cache;
  const float* rotary;  // [num_tokens, 2 * shape.half], for keys
  const int64_t* slots;
  int num_tokens;
  RowShape shape;
  DType dtype;
};

// Copies bytes, or writes zeros if `from` is null; rows are whole 4-byte words.
__device__ __forceinline__ void copy_words(const void* from, void* to, int64_t bytes, int lane,
                                           int lanes) {
  for (int64_t i = lane; i < bytes / 4; i += lanes) {
    static_cast<uint32_t*>(to)[i] = from == nullptr ? 0 : static_cast<const uint32_t*>(from)[i];
  }
}

template <class T, int E>
__global__ void __launch_bounds__(kRowThreads) move_rows_kernel(const MoveRowsParams p, int lanes) {
  constexpr bool kIsInt8 = std::is_same_v<T, int8_t>;
  const int heads = p.cache.num_kv_heads, planes = p.from.value == nullptr ? 1 : 2;
  const auto [token, index, lane] = row_index(lanes, planes * heads);
  const bool exists = token < p.num_tokens, is_value = index >= heads;
  const int head = is_value ? index - heads : index;
  const int64_t slot = exists ? p.slots[token] : -1;
  const bool is_cached = p.cache.has(slot);
  RowShape shape = p.shape;
  if (is_value) shape.half = 0;
  const bool is_copied = is_cached && !(kIsInt8 && shape.half == 0);
  HeadRow<E> row{};
  const T* from = nullptr;
  T* to = nullptr;
  if (is_cached) from = p.from.row<T>(p.cache, is_value, token, slot, head);
  if (is_cached || (exists && !p.to.is_cache)) {
    to = p.to.row<T>(p.cache, is_value, token, slot, head);
  }
  if (is_copied) row.load(from, shape, lane, lanes);
  if (is_copied) row.turn(p.rotary + token * 2 * shape.half, shape, lane, lanes);
  if constexpr (kIsInt8) {
    const RowScale by = row.scale(shape, lane, lanes);
    if (is_copied) row.store_quantized(to, by, shape, lane, lanes);
  } else {
    if (is_copied) row.store(to, shape, lane, lanes);
  }
  if (to != nullptr && !is_copied) copy_words(from, to, p.cache.row_size * sizeof(T), lane, lanes);
}

// Returns whether every token's dense rows begin at a multiple of `bytes`.
inline bool rows_aligned(const void* data, int64_t stride, int64_t element_size, int64_t bytes) {
  return is_aligned(data, bytes) && divides(bytes, stride * element_size);
}

template <class Kernel, class Params>
void launch_rows(Kernel kernel, const Params& p, int64_t rows, int lanes, Stream stream) {
  if (rows == 0) return;
  launch(kernel, ceil_div(rows * lanes, kRowThreads), kRowThreads, 0, stream, p, lanes);
}

template <class T, class Cache>
void rotary_and_cache_typed(const RotaryAndCacheParams& p, Stream stream) {
  constexpr int E = kVectorSize<T>;
  constexpr int kCacheBytes = std::is_same_v<Cache, int8_t> ? 4 : E * sizeof(Cache);
  const int64_t rows = int64_t{p.num_tokens} * (p.num_heads + 2 * p.cache.num_kv_heads);
  const auto fits = [&](const TokenHeads& heads) {
    return rows_aligned(heads.data, heads.stride, sizeof(T), 16);
  };
  const bool is_wide = units_fit<E>(p.shape, p.rotary) && is_aligned(p.sink_rotary, 16) &&
                       fits(p.query) && fits(p.sink_query) && fits(p.key) && fits(p.value) &&
                       rows_aligned(p.k_cache, p.cache.block_stride, sizeof(Cache), kCacheBytes) &&
                       is_aligned(p.v_cache, kCacheBytes);
  const int head_dim = p.shape.head_dim;
  if (is_wide) {
    launch_rows(rotary_and_cache_kernel<T, Cache, E>, p, rows, lanes_per_row<E>(head_dim), stream);
  } else {
    launch_rows(rotary_and_cache_kernel<T, Cache, 1>, p, rows, lanes_per_row<1>(head_dim), stream);
  }
}

inline void run_rotary_and_cache(const RotaryAndCacheParams& p, Stream stream) {
  with_model_type(p.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    if (p.cache_dtype == DType::kInt8) {
      rotary_and_cache_typed<T, int8_t>(p, stream);
    } else if (p.cache_dtype == DType::kFloat8) {
      rotary_and_cache_typed<T, float8_e4m3>(p, stream);
    } else {
      rotary_and_cache_typed<T, T>(p, stream);
    }
  });
}

template <class T>
void move_rows_typed(const MoveRowsParams& p, Stream stream) {
  // Rows of 1-byte elements are only sure to be aligned to 8 bytes, int8 rows to 4.
  constexpr int E = std::is_same_v<T, int8_t> ? 4 : sizeof(T) == 1 ? 8 : kVectorSize<T>;
  constexpr int kBytes = E * sizeof(T);
  const auto fits = [&](const RowSide& side) {
    const int64_t stride = side.is_cache ? p.cache.block_stride : side.token_stride;
    return rows_aligned(side.key, stride, sizeof(T), kBytes) && is_aligned(side.value, kBytes);
  };
  const int64_t rows =
      int64_t{p.num_tokens} * p.cache.num_kv_heads * (p.from.value == nullptr ? 1 : 2);
  if (units_fit<E>(p.shape, p.rotary) && fits(p.from) && fits(p.to)) {
    launch_rows(move_rows_kernel<T, E>, p, rows, lanes_per_row<E>(p.shape.head_dim), stream);
  } else {
    launch_rows(move_rows_kernel<T, 1>, p, rows, lanes_per_row<1>(p.shape.head_dim), stream);
  }
}

inline void run_move_rows(const MoveRowsParams& p, Stream stream) {
  with_cache_type(p.dtype,
                  [&](auto tag) { move_rows_typed<typename decltype(tag)::type>(p, stream); });
}

}  // namespace paged_stream
