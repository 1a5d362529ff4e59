// The layout of a row (one head of one token) in the cache.
#pragma once

#include <cstdint>

#include "host_device.h"

namespace paged_stream {

constexpr int64_t kMaxHeadDim = 256;

// A row of an int8 cache is head_dim elements followed by their float32 scale, so code that moves
// rows or blocks moves the scales too.
constexpr int64_t kScaleBytes = 4;

// Returns the offset, in cache elements, of a slot's first head. Consecutive heads of a slot are
// block_size rows apart. A cache has fewer than 2^31 slots, so the division is 32-bit.
PAGED_STREAM_INLINE int64_t slot_offset(int64_t slot, int64_t block_size, int64_t block_stride,
                                        int64_t row_size) {
  const uint32_t index = static_cast<uint32_t>(slot), size = static_cast<uint32_t>(block_size);
  const uint32_t block = index / size;
  return block * block_stride + (index - block * size) * row_size;
}

// Rows whose largest element is below this become zero: 127 / largest might not be finite.
constexpr float kSmallestMax = 0x1p-119f;

// `scale` restores a quantised row's elements; `inverse` multiplies them before rounding.
struct RowScale {
  float scale, inverse;
};

// `largest`: the row's largest absolute value. `nothing`: the sum of the elements times 0, which is
// NaN if any element is infinite or NaN. The scale is then NaN too.
PAGED_STREAM_INLINE RowScale quantized_scale(float largest, float nothing) {
  const bool is_zero = largest < kSmallestMax;
  return {(is_zero ? 0.0f : largest / 127.0f) + nothing, is_zero ? 0.0f : 127.0f / largest};
}

// x * inverse + kRoundingShift has the nearest integer, ties to even, in its low mantissa bits.
constexpr float kRoundingShift = 12582912.0f;  // 1.5 * 2^23

}  // namespace paged_stream
