// The interface of the products with packed float32 and bfloat16 weights.
#pragma once

#include <cstdint>

namespace paged_stream {

// Output columns that a packed weight stores side by side.
constexpr int kLinearPanel = 16;
// Computes tiles [tile_begin, tile_end) and panels [panel_begin, panel_end) of x W^T + bias.
//
// The rows of x are divided into tiles of nearly equal numbers of rows. A tile's layout is
// x[k][row] in float32, or QuantizedRows.
struct LinearArgs {
  const void* x;       // float32, or QuantizedRows
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
// Most tiles per call: their part of x then stays in the L2 cache.
constexpr int64_t kTilesPerItem = 8;

// Packs a tile of x into x[k][row]. Fast for at most one vector's width of rows.
struct PackRowsArgs {
  const void* x;
  int64_t stride;  // elements between rows
  int64_t rows;
  int64_t columns;
  float* out;
};
using PackRowsFn = void (*)(const PackRowsArgs&);

}  // namespace paged_stream
