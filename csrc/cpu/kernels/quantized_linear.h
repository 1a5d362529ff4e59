// Products with weights in blocks of GGUF, as launchers ask for them.
#pragma once

#include <cstdint>

namespace paged_stream {

// Weights in blocks of 32 consecutive k of a row, as GGUF files have them: w = scale * (code -
// zero_point) + min, with a float16 scale, and a float16 min in kQ4_1.
enum class BlockFormat { kQ4_0 = 0, kQ4_1 = 1, kQ8_0 = 2 };
constexpr int kNumBlockFormats = 3;
constexpr int kQuantBlock = 32;

struct BlockLayout {
  int bits;
  int zero_point;  // of codes that are unsigned; those of kQ8_0 are stored plus 128
  bool has_min;

  constexpr int code_bytes() const { return kQuantBlock * bits / 8; }
  // Of one row's block, in the file as in the packed weight.
  constexpr int bytes() const { return code_bytes() + (has_min ? 4 : 2); }
};
constexpr BlockLayout block_layout(BlockFormat format) {
  switch (format) {
    case BlockFormat::kQ4_0:
      return {4, 8, false};
    case BlockFormat::kQ4_1:
      return {4, 0, true};
    default:
      return {8, 128, false};
  }
}

// Rows of x as integers, x = scale * code, one scale per block of 32. A code has 15 bits, finer
// than bfloat16 for all that matters in a block, and is 128 * high + low with two bytes. For every
// block of a tile of R rows: high bytes [8][R][4], low bytes [8][R][4], float32 scales [R], and
// corrections [R]: the sum of the codes, times the scale as float32 for formats with a min, else
// times -zero_point as int32.
constexpr int64_t kQuantizedBlockBytes = 2 * kQuantBlock + 8;  // of one row
struct QuantizeArgs {
  const void* x;   // the tile's first row
  int64_t stride;  // elements between rows
  int64_t rows;
  int64_t in_features;
  BlockFormat format;
  void* out;
};
using QuantizeFn = void (*)(const QuantizeArgs&);

}  // namespace paged_stream
