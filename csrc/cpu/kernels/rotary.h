// The interface of the rotation of heads.
#pragma once

#include <cstdint>

#include "cache_layout.h"

namespace paged_stream {

// Copies rows of head_dim elements and rotates their first rotary_dim elements by the angles. Int8
// rows include their scale; rotated ones are quantised again.
struct RotateArgs {
  const void* src;
  void* dst;  // may be src
  int64_t num_heads;
  int64_t src_stride;  // elements between heads
  int64_t dst_stride;  // elements between heads
  int64_t head_dim;
  const float* angles;  // rotary_dim / 2 cosines, then as many sines
  int64_t rotary_dim;   // 0 copies without rotating
  bool interleaved;     // pairs are (2i, 2i + 1), otherwise (i, i + rotary_dim / 2)
};
using RotateFn = void (*)(const RotateArgs&);

}  // namespace paged_stream
