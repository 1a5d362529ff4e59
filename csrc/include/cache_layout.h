// How one head of one token, a row, lies in the cache.
#pragma once

#include <cstdint>

#include "host_device.h"

namespace paged_stream {

constexpr int64_t kMaxHeadDim = 256;

// A row of an int8 cache is head_dim elements and then their scale, a float32. So whatever moves
// rows or blocks moves the scales with them.
constexpr int64_t kScaleBytes = 4;

// Where a slot's first head lies, in elements of the cache; its heads are block_size rows apart.
// A cache has fewer than 2^31 slots, so that the division is one of 32 bits.
PAGED_STREAM_INLINE int64_t slot_offset(int64_t slot, int64_t block_size, int64_t block_stride,
                                        int64_t row_size) {
  const uint32_t index = static_cast<uint32_t>(slot), size = static_cast<uint32_t>(block_size);
  const uint32_t block = index / size;
  return block * block_stride + (index - block * size) * row_size;
}

// Rows whose largest element is smaller, so that 127 over it might not be finite, become zero.
constexpr float kSmallestMax = 0x1p-119f;

// What a row's elements are multiplied by before they are rounded, and what undoes it.
struct RowScale {
  float scale, inverse;
};

// `largest`: of the absolute values of a row. `nothing`: the sum of its elements times 0, which is
// NaN if any of them is infinite or NaN; then the scale is NaN too.
PAGED_STREAM_INLINE RowScale quantized_scale(float largest, float nothing) {
  const bool is_zero = largest < kSmallestMax;
  return {(is_zero ? 0.0f : largest / 127.0f) + nothing, is_zero ? 0.0f : 127.0f / largest};
}

// x * inverse + kRoundingShift has the nearest integer, ties to even, in its low mantissa bits.
constexpr float kRoundingShift = 12582912.0f;  // 1.5 * 2^23

}  // namespace paged_stream
