// The interface of the products with quantised weights.
#pragma once

#include <cstdint>

namespace paged_stream {

// Weights in groups of 32 consecutive k of a row, which GGUF calls blocks: w = scale * (code -
// zero_point) + min, with a float16 scale and, in kQ4_1, a float16 min.
enum class GroupFormat { kQ4_0 = 0, kQ4_1 = 1, kQ8_0 = 2 };
constexpr int kNumGroupFormats = 3;
constexpr int kGroupSize = 32;

struct GroupLayout {
  int bits;
  int zero_point;  // of unsigned codes; kQ8_0 stores its codes plus 128
  bool has_min;

  constexpr int code_bytes() const { return kGroupSize * bits / 8; }
  // Bytes of one row's group, both in the file and in the packed weight.
  constexpr int bytes() const { return code_bytes() + (has_min ? 4 : 2); }
};
constexpr GroupLayout group_layout(GroupFormat format) {
  switch (format) {
    case GroupFormat::kQ4_0:
      return {4, 8, false};
    case GroupFormat::kQ4_1:
      return {4, 0, true};
    default:
      return {8, 128, false};
  }
}

// Rows of x as integers, x = scale * code with one scale per group of 32. A code has 15 bits, finer
// than bfloat16 for all that matters in a group, and is stored in two bytes: 128 * high + low. Each
// group of a tile of R rows holds:
//   high bytes [8][R][4], low bytes [8][R][4], float32 scales [R], and
//   corrections [R]: the sum of the codes, times the scale as float32 for formats with a min, or
//   times -zero_point as int32 for the others.
constexpr int64_t kQuantizedGroupBytes = 2 * kGroupSize + 8;  // of one row
struct QuantizeArgs {
  const void* x;   // the tile's first row
  int64_t stride;  // elements between rows
  int64_t rows;
  int64_t in_features;
  GroupFormat format;
  void* out;
};
using QuantizeFn = void (*)(const QuantizeArgs&);

}  // namespace paged_stream
