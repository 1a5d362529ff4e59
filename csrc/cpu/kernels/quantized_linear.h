// The interface of the products with quantised weights, and how these are packed.
#pragma once

#include <cstdint>

#include "kernels/linear.h"

namespace paged_stream {

// Number formats, by GGUF's names. kQ4_Z, this project's own, is Q4_0 with a zero point for each
// group: what AWQ and GPTQ store.
enum class GroupFormat {
  kQ4_0 = 0,
  kQ4_1,
  kQ8_0,
  kQ5_0,
  kQ5_1,
  kQ4_Z,
  kIQ4_NL,
  kQ2_K,
  kQ3_K,
  kQ4_K,
  kQ5_K,
  kQ6_K,
  kIQ4_XS
};
constexpr int kNumGroupFormats = 13;
constexpr int kGroupSize = 32;

// Codes of kIQ4_NL and kIQ4_XS are indices into this table, which is stored plus 128.
constexpr uint8_t kCodeTable[16] = {1,   24,  45,  63,  79,  93,  106, 118,
                                    129, 141, 153, 166, 181, 197, 217, 241};

// A step is what has float16 scales of its own: one group of 32 consecutive k of a row, or eight of
// them. A weight is scale * (code - zero_point) - min. The scale is the step's first float16, times
// a byte where there are scale bytes. The min is
//   kMinHalf: minus the step's second float16,
//   kMinByte: the second float16 times a byte of the group,
//   kMinNibble: the second float16 times the upper half of the scale byte, whose lower half is the
//     scale's,
//   kZeroByte: the scale times a byte of the group.
enum class MinKind { kNone, kMinHalf, kMinByte, kMinNibble, kZeroByte };

struct GroupLayout {
  int bits;        // of a code
  int zero_point;  // of unsigned codes
  MinKind min = MinKind::kNone;
  int groups = 1;       // of a step
  int scale_bytes = 0;  // of a group; each is of 32 / scale_bytes consecutive k
  bool has_table = false;

  constexpr bool has_min() const { return min != MinKind::kNone; }
  // Spans of a group that have sums of their own.
  constexpr int subs() const { return scale_bytes == 2 ? 2 : 1; }
  constexpr int halves() const {
    return min == MinKind::kNone || min == MinKind::kZeroByte ? 1 : 2;
  }
  constexpr int min_bytes() const {
    return min == MinKind::kMinByte || min == MinKind::kZeroByte ? 1 : 0;
  }
  constexpr int code_bytes() const { return kGroupSize * bits / 8; }
  // Of one row, like those that follow.
  constexpr int group_bytes() const { return scale_bytes + min_bytes() + code_bytes(); }
  constexpr int step_bytes() const { return 2 * halves() + groups * group_bytes(); }
  constexpr int step_size() const { return groups * kGroupSize; }
  constexpr int64_t quantized_bytes() const { return 2 * kGroupSize + 4 + 4 * subs(); }
};

constexpr GroupLayout group_layout(GroupFormat format) {
  switch (format) {
    case GroupFormat::kQ4_0:
      return {4, 8};
    case GroupFormat::kQ4_1:
      return {4, 0, MinKind::kMinHalf};
    case GroupFormat::kQ8_0:
      return {8, 128};
    case GroupFormat::kQ5_0:
      return {5, 16};
    case GroupFormat::kQ5_1:
      return {5, 0, MinKind::kMinHalf};
    case GroupFormat::kQ4_Z:
      return {4, 0, MinKind::kZeroByte};
    case GroupFormat::kIQ4_NL:
      return {.bits = 4, .zero_point = 128, .has_table = true};
    case GroupFormat::kQ2_K:
      return {2, 0, MinKind::kMinNibble, 8, 2};
    case GroupFormat::kQ3_K:
      return {3, 4, MinKind::kNone, 8, 2};
    case GroupFormat::kQ4_K:
      return {4, 0, MinKind::kMinByte, 8, 1};
    case GroupFormat::kQ5_K:
      return {5, 0, MinKind::kMinByte, 8, 1};
    case GroupFormat::kQ6_K:
      return {6, 32, MinKind::kNone, 8, 2};
    default:
      return {4, 128, MinKind::kNone, 8, 1, true};
  }
}

// A packed step has 16 rows side by side: their float16 scales, then their second float16 numbers
// if there are such, then the groups. A group has the scale bytes of all rows, span by span, their
// min bytes, and lines of codes, four bytes of each row in turn. Quad t of a group is codes 4t to
// 4t + 3; code 4t + i has bits in byte i of
//   8-bit codes: line t;
//   4, 5 and 6 bits: half t / 4 of line t % 4. The fifth bit is bit t of line 4, the fifth and
//   sixth
//     are bits 2 (t % 4) and the next of line 4 + t / 4;
//   2 and 3 bits: bits 2 (t % 4) and the next of line t / 4. The third bit is bit t of line 2.

// Rows of x as integers, x = scale * code with one scale per group of 32. A code has 15 bits, finer
// than bfloat16 for all that matters in a group, and is stored in two bytes: 128 * high + low. Each
// group of a tile of R rows holds:
//   high bytes [8][R][4], low bytes [8][R][4], float32 scales [R], and
//   corrections [subs][R]: the sum of the codes, times the scale as float32 for formats with a min,
//   or times -zero_point as int32 for the others.
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
