// The interface of the products with packed float32 and bfloat16 weights.
#pragma once

#include <cstdint>

namespace paged_stream {

// Output columns that a packed weight stores side by side.
constexpr int kLinearPanel = 16;
// Computes tiles [tile_begin, tile_end) and panels [panel_begin, panel_end) of x W^T + bias.
//
// The rows of x are divided into tiles of nearly equal numbers of rows, each laid out as the kernel
// reads it: by its PackRowsFn or its QuantizeFn.
struct LinearArgs {
  const void* x;
  const void* weight;  // packed
  const float* bias;   // or null
  void* out;           // dense rows
  int64_t rows;
  int64_t num_tiles;
  int64_t in_features;
  int64_t out_features;
  bool float_out;
  int64_t tile_begin, tile_end;
  int64_t panel_begin, panel_end;

  int64_t tile_row(int64_t tile) const { return tile * rows / num_tiles; }
};
using LinearFn = void (*)(const LinearArgs&);
// Most tiles, or rows of x, per call: their part of x then stays in the L2 cache.
constexpr int64_t kTilesPerItem = 8;
constexpr int64_t kRowsPerItem = 96;

// Packs a tile of x: from [row][k] to [k][row]. Fast for at most one vector's width of rows.
struct PackRowsArgs {
  const char* x;
  int64_t stride;  // bytes between rows
  int64_t rows;
  int64_t columns;
  void* out;
};
using PackRowsFn = void (*)(const PackRowsArgs&);

// The products with the weights of one dtype.
struct DenseKernels {
  LinearFn linear;
  PackRowsFn pack_rows;
  int64_t max_tile_rows;
  int64_t max_tiles;    // per call
  int64_t packed_size;  // bytes of an element of x, packed
};

// The order in which products with bfloat16 weights are added. It is the same in every instruction
// set of x86-64, and so are the bits of the result, but for the payload of a NaN.
//
// The k of a row are cut into groups of 32, and a group into pairs of neighbours. A group has two
// sums, one of its even pairs (the first, the third, ...) and one of its odd pairs. Both start at
// zero and add pair after pair: the product of the pair's second element, then that of its first,
// each by a fused multiply-add. The result starts at zero and adds (even + odd) of group after
// group. Denormal numbers count as zero: in x, in the weight and in every sum.
//
// That is how VDPBF16PS treats a pair. TDPBF16PS would fit, too: it has two sums per group, one of
// the first elements of all pairs and one of the second. Packed for it, a group's pairs would be
// k = (1, 3), (0, 2), (5, 7), (4, 6), (9, 11), ...
constexpr int kBFloat16Group = 32;

}  // namespace paged_stream
