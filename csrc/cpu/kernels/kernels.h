// The boundary between launchers and the kernels of one instruction set: plain pointers, no torch.
#pragma once

#include <cstdint>

#include "cache_layout.h"
#include "number_types.h"

namespace paged_stream {

constexpr int kNumDTypes = 2;  // that models compute in, the first ones of DType

// Copies rows of head_dim elements, turning their first rotary_dim elements by the angles. Rows of
// int8 come with their scale; those that are turned are quantised again.
struct RotateArgs {
  const void* src;
  void* dst;  // may be src
  int64_t num_heads;
  int64_t src_stride;  // elements between heads; so is dst_stride
  int64_t dst_stride;
  int64_t head_dim;
  const float* angles;  // rotary_dim / 2 cosines, then as many sines
  int64_t rotary_dim;   // 0 only copies
  bool interleaved;     // pairs are (2i, 2i + 1), else (i, i + rotary_dim / 2)
};
using RotateFn = void (*)(const RotateArgs&);

// Offsets of a run are padded with the last one up to a multiple of this, so kernels may read
// (never use) whole vectors of keys.
constexpr int kKeyPadding = 64;

// Runs longer than these do not fit the scratch of the two attention kernels.
constexpr int kMaxRunDirect = 768;
constexpr int kMaxRunPacked = 128;
// Up to this many rows reading K and V in place is faster than packing them first.
constexpr int kMaxRowsDirect = 8;
// Rows of packed queries, scores and accumulators come in multiples of this.
constexpr int kRowPadding = 6;
constexpr int64_t padded_rows(int64_t rows) {
  return (rows + kRowPadding - 1) / kRowPadding * kRowPadding;
}

// What one row (a token of one query head) sees of a run, and its ALiBi bias there.
struct RowView {
  int32_t begin;  // keys [begin, end) of the run are visible
  int32_t end;
  float slope;     // log2(e) * the head's slope
  float distance;  // from the run's first key to the row's position
};

// Consecutive positions that the rows address with the same queries.
struct KeyRun {
  const void* k_cache;
  const void* v_cache;
  const int64_t* offsets;  // element offset of each key's row, in k_cache and in v_cache
  int num_keys;
  const float* query;    // [rows, padded_dim], packed by pack_query
  const RowView* views;  // [rows]
  bool has_alibi;        // never together with a softcap
  float softcap;         // scores s become softcap * tanh(s / softcap); 0 leaves them
};

// Online softmax of some rows: what they have accumulated over the runs seen so far.
struct SoftmaxState {
  int num_rows;
  float* max;  // [rows], of log2-domain scores
  float* sum;  // [rows]
  float* acc;  // [rows padded, padded_dim], lanes in chunk order
};

struct AttentionScratch {
  float* scores;    // kMaxRowsDirect * kMaxRunDirect or more
  float* packed_k;  // kMaxRunPacked * padded_dim
  float* packed_v;  // same
};

// Kernels for one dtype of queries, one of the cache, and a range of head_dim.
struct AttentionKernels {
  // Elements that a packed row takes: head_dim rounded up to whole chunks.
  int (*padded_dim)(int head_dim);
  void (*pack_query)(const void* query, int head_dim, float factor, float* packed);
  void (*attend_direct)(const KeyRun&, int head_dim, const SoftmaxState&, const AttentionScratch&);
  void (*attend_packed)(const KeyRun&, int head_dim, const SoftmaxState&, const AttentionScratch&);
  // Folds num_parts states of the same shape, lying part_stride floats apart, into the first.
  void (*merge)(const SoftmaxState& first, int64_t part_stride, int num_parts, int head_dim);
  void (*write_output)(const float* acc, float sum, int head_dim, void* out);
};

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

// A tile of x on its way to that layout; W rows or fewer go fast.
struct PackRowsArgs {
  const void* x;
  int64_t stride;  // elements between rows
  int64_t rows;
  int64_t columns;
  float* out;
};
using PackRowsFn = void (*)(const PackRowsArgs&);

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

// Kernels of quantised weights for one instruction set.
struct QuantizedKernels {
  LinearFn linear[kNumBlockFormats];
  QuantizeFn quantize[kNumDTypes];
  int64_t max_tile_rows;
};

// Adds the delta to the residual (rounding to the dtype), when there is one, and normalises:
// out = residual / rms(residual) * weight.
struct RmsNormArgs {
  void* residual;     // [rows, dim], changed when delta is given
  const void* delta;  // [rows, dim] or null
  const float* weight;
  void* out;
  int64_t dim;
  float eps;
};
using RmsNormFn = void (*)(const RmsNormArgs&, int64_t row_begin, int64_t row_end);

// out = silu(gate) * up for rows of [gate, up], dim elements each.
using SiluAndMulFn = void (*)(const void* gate_up, void* out, int64_t dim, int64_t row_begin,
                              int64_t row_end);

// Logits of which only the largest is read when nothing in the block is likely enough.
constexpr int64_t kVocabBlock = 64;
// What the sampler notes about such a block.
struct VocabBlock {
  int32_t index;
  int64_t num_ties;  // kept logits that equal the least one kept
  double mass;       // of all kept ones
};
struct SampleArgs {
  const float* logits;  // [vocab]
  int64_t vocab;
  const float* maxima;    // one per block, padded with -inf
  int64_t padded_blocks;  // a multiple of kMaximaPadding
  bool greedy;
  double inv_temperature;
  double log_min_p;
  int64_t top_k;   // 0 keeps all
  double top_p;    // 1 keeps all
  double uniform;  // in [0, 1)
  // Scratch
  double* weights;     // [blocks, kVocabBlock]
  VocabBlock* blocks;  // [blocks]
};
constexpr int64_t kMaximaPadding = 16;
using BlockMaximaFn = void (*)(const float* logits, int64_t vocab, int64_t block_begin,
                               int64_t block_end, float* maxima);
using PickTokenFn = int64_t (*)(const SampleArgs&);

struct Kernels {
  // From a dtype to the same, or to int8.
  RotateFn (*rotate)(DType from, DType to);
  RmsNormFn rms_norm[kNumDTypes];
  SiluAndMulFn silu_and_mul[kNumDTypes];
  const AttentionKernels* (*attention)(DType dtype, DType cache_dtype, int head_dim);
  LinearFn linear[kNumDTypes];
  PackRowsFn pack_rows[kNumDTypes];
  int64_t max_tile_rows;
  BlockMaximaFn block_maxima;
  PickTokenFn pick_token;
};

extern const Kernels kGenericKernels;
extern const QuantizedKernels kGenericQuantizedKernels;
#if defined(__x86_64__)
extern const Kernels kAvx2Kernels, kAvx512Kernels;
extern const QuantizedKernels kAvx2QuantizedKernels, kAvx512QuantizedKernels;
extern const QuantizedKernels kAvxVnniKernels, kAvx512VnniKernels;
#endif

// What one name of an instruction set stands for.
struct Isa {
  const char* name;
  const Kernels* kernels;
  const QuantizedKernels* quantized;
};

// The one in use: the widest that the processor has, unless set_cpu_isa chose another.
const Isa& isa();
inline const Kernels& kernels() { return *isa().kernels; }

}  // namespace paged_stream
