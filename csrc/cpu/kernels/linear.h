// Products with packed weights in float32 and bfloat16, as launchers ask for them.
#pragma once

#include <cstdint>

namespace paged_stream {

// Output columns that lie side by side in a packed weight.
constexpr int kLinearPanel = 16;
// x W^T + bias for tiles [tile_begin, tile_end) of x and panels [panel_begin, panel_end) of W.
//
// The rows of x are cut into tiles of nearly the same number of rows. Within a tile, x[k][row] is
// the layout of float32 rows; that of quantised ones is QuantizedRows.
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
// Most tiles in one call: their part of x stays in the second-level cache.
constexpr int64_t kTilesPerItem = 8;

// Brings a tile of x into that layout; a vector's width of rows or fewer is fast.
struct PackRowsArgs {
  const void* x;
  int64_t stride;  // elements between rows
  int64_t rows;
  int64_t columns;
  float* out;
};
using PackRowsFn = void (*)(const PackRowsArgs&);

}  // namespace paged_stream
