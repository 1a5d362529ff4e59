// The interface of the kernel for matrices of low rank.
#pragma once

#include <cstdint>

namespace paged_stream {

// out += scaling * up^T (down x), for one row: summed in float32, rounded once.
struct LowRankArgs {
  const void* x;     // [in_features]
  const void* down;  // [rank, in_features]
  const void* up;    // [rank, columns]
  void* out;         // [columns]
  float* products;   // scratch, [rank]
  int64_t rank;
  int64_t in_features;
  int64_t columns;
  float scaling;
};
using LowRankFn = void (*)(const LowRankArgs&);

}  // namespace paged_stream
