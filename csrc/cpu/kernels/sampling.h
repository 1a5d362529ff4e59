// The choice of a token from a row of logits, as launchers ask for it.
#pragma once

#include <cstdint>

namespace paged_stream {

// So many logits make a tile. Only a tile's largest is read when none of them is likely enough.
constexpr int64_t kVocabTile = 64;
// What the sampler notes about such a tile.
struct VocabTile {
  int32_t index;
  int64_t num_ties;  // kept logits that equal the least one kept
  double mass;       // of all kept ones
};
struct SampleArgs {
  const float* logits;  // [vocab]
  int64_t vocab;
  const float* maxima;   // one per tile, padded with -inf
  int64_t padded_tiles;  // a multiple of kMaximaPadding
  bool greedy;
  double inv_temperature;
  double log_min_p;
  int64_t top_k;   // 0 keeps all
  double top_p;    // 1 keeps all
  double uniform;  // in [0, 1)
  // Scratch
  double* weights;   // [tiles, kVocabTile]
  VocabTile* tiles;  // [tiles]
};
constexpr int64_t kMaximaPadding = 16;
using TileMaximaFn = void (*)(const float* logits, int64_t vocab, int64_t tile_begin,
                              int64_t tile_end, float* maxima);
using PickTokenFn = int64_t (*)(const SampleArgs&);

}  // namespace paged_stream
