// The interface of the kernels that sample a token from a row of logits.
#pragma once

#include <cstdint>

#include "sampling_parameters.h"

namespace paged_stream {

// Logits per tile. If a tile's largest logit is too small, no other logit of it is read.
constexpr int64_t kVocabTile = 64;
// The sampler's notes on a tile.
struct VocabTile {
  int32_t index;
  int64_t num_ties;  // kept logits that equal the lowest kept one
  double mass;       // total weight of the kept logits
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
