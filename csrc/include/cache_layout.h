// How one head of one token, a row, lies in the cache.
#pragma once

#include <cstdint>

namespace paged_stream {

constexpr int64_t kMaxHeadDim = 256;

// A row of an int8 cache is head_dim elements and then their scale, a float32. So whatever moves
// rows or blocks moves the scales with them.
constexpr int64_t kScaleBytes = 4;

}  // namespace paged_stream
