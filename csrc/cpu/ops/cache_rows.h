// Shared by the ops that write, read and rotate cache rows.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cache_layout.h"
#include "checks.h"
#include "dtype.h"
#include "isa/kernel_table.h"
#include "ops/heads.h"

namespace paged_stream {

constexpr int64_t kMinBytesPerThread = 32 * 1024;

struct CacheShape {
  DType dtype;
  int64_t num_blocks, num_kv_heads, block_size, row_size, head_dim, block_stride, element_size;

  explicit CacheShape(const Tensor& cache)
      : dtype(dtype_of(cache)),
        num_blocks(cache.size(0)),
        num_kv_heads(cache.size(1)),
        block_size(cache.size(2)),
        row_size(cache.size(3)),
        head_dim(head_dim_of(cache)),
        block_stride(row_stride(cache)),
        element_size(static_cast<int64_t>(cache.element_size())) {}

  int64_t head_stride() const { return block_size * row_size; }

  // Byte offset of a slot's first head; its heads are head_stride() elements apart.
  int64_t slot_offset(int64_t slot) const {
    return paged_stream::slot_offset(slot, block_size, block_stride, row_size) * element_size;
  }

  int64_t grain(int64_t heads) const {
    return std::max<int64_t>(1, kMinBytesPerThread / (heads * row_size * element_size));
  }
};

// Copies heads of tokens to the same dtype, or to the int8 of a quantised cache.
struct HeadMover {
  RotateFn rotate;
  int64_t head_dim;

  HeadMover(DType from, DType to, int64_t head_dim)
      : rotate(kernels().rotate(from, to)), head_dim(head_dim) {}

  // Moves one token's heads, rotated by the angles of `row`; strides in elements.
  void move(const char* src, int64_t src_stride, char* dst, int64_t dst_stride, int64_t heads,
            const Angles& angles, int64_t row) const {
    rotate({src, dst, heads, src_stride, dst_stride, head_dim, angles.data + row * angles.dim,
            angles.dim, angles.interleaved});
  }
};

inline char* bytes(const Tensor& t) { return static_cast<char*>(t.mutable_data_ptr()); }
inline const char* const_bytes(const Tensor& t) {
  return static_cast<const char*>(t.const_data_ptr());
}

// Checks all slots, before anything is written, and returns a copy: what an op writes may be the
// memory that it read them from.
inline std::vector<int64_t> checked_slots(const Checker& check, const Slots& slots,
                                          const Tensor& cache) {
  const int64_t num_slots = cache.size(0) * cache.size(2);
  std::vector<int64_t> copy(slots.begin(), slots.end());
  for (size_t i = 0; i < copy.size(); ++i) {
    if (copy[i] >= -1 && copy[i] < num_slots) continue;
    check.require(false, "slot_mapping values must be in [-1, ", num_slots, "), got ", copy[i],
                  " at index ", i);
  }
  return copy;
}

// Checks a slot_mapping tensor and its slots, and returns the slots.
inline std::vector<int64_t> read_slots(const Checker& check, const Tensor& slot_mapping,
                                       int64_t rows, const Tensor& cache) {
  check.metadata(slot_mapping, "slot_mapping", ScalarType::Long, "[T]", {rows}, cache);
  const Slots slots(slot_mapping.const_data_ptr<int64_t>(), slot_mapping.size(0));
  return checked_slots(check, slots, cache);
}

inline int64_t size_of(DType dtype) {
  if (dtype == DType::kInt8) return 1;
  return dtype == DType::kFloat32 ? 4 : 2;
}

// Writes one token's rotated key and its value to the token's slot.
struct SlotWriter {
  CacheShape shape;
  HeadMover mover;
  Heads key, value;
  DType dtype;          // of key and value
  int64_t head_stride;  // elements between heads of key and value
  char *k_cache, *v_cache;
  Slots slots;
  Angles angles;

  SlotWriter(const Heads& key, const Heads& value, DType dtype, int64_t head_stride,
             const Tensor& k_cache, const Tensor& v_cache, const Slots& slots, const Angles& angles)
      : shape(k_cache),
        mover(dtype, shape.dtype, shape.head_dim),
        key(key),
        value(value),
        dtype(dtype),
        head_stride(head_stride),
        k_cache(bytes(k_cache)),
        v_cache(bytes(v_cache)),
        slots(slots),
        angles(angles) {}

  void write(int64_t token) const {
    if (slots[token] < 0) return;
    const int64_t offset = shape.slot_offset(slots[token]), size = size_of(dtype);
    mover.move(key.token(token, size), head_stride, k_cache + offset, shape.head_stride(),
               shape.num_kv_heads, angles, token);
    mover.move(value.token(token, size), head_stride, v_cache + offset, shape.head_stride(),
               shape.num_kv_heads, Angles(), token);
  }
};

inline Heads heads_of(const Tensor& t) { return {t.data_ptr(), row_stride(t), t.size(1)}; }

}  // namespace paged_stream
