// The interface of the attention kernels, which process query rows against a run of keys.
//
// A row's result has the same bits whichever rows are computed beside it. So its keys are cut where
// their positions say, into runs and these into parts, and both kernels add in one order: a score
// over the elements of the head as they are packed, an accumulator over the keys as they follow.
#pragma once

#include <cstdint>

namespace paged_stream {

// A run begins at a multiple of this; keys before the first one that is there are hidden.
constexpr int kKeyAlignment = 16;
// It ends where a multiple of this does.
constexpr int kRunKeys = 256;
// The softmax begins anew at multiples of this; see merge.
constexpr int kPartKeys = 512;
// As many offsets follow a run's, those of the keys behind it or copies of the last one. Kernels
// may load whole panels of keys, and prefetch, but must not use what they load there.
constexpr int kKeyPadding = 64;

// Up to this many rows, reading K and V in place is faster than packing them first.
constexpr int kMaxRowsDirect = 8;
// Packed queries, scores and accumulators have a multiple of this many rows.
constexpr int kRowPadding = 6;
static_assert(kRowPadding <= kMaxRowsDirect);
constexpr int64_t padded_rows(int64_t rows) {
  return (rows + kRowPadding - 1) / kRowPadding * kRowPadding;
}

// The keys of a run that are visible to one row (a token of one query head), and its ALiBi bias.
struct RowView {
  int32_t begin;  // keys [begin, end) of the run are visible
  int32_t end;
  float slope;     // log2(e) * the head's slope
  float distance;  // from the run's first key to the row's position
};

// Keys at consecutive positions, at most kRunKeys, which the rows multiply with the same queries.
struct KeyRun {
  const void* k_cache;
  const void* v_cache;
  const int64_t* offsets;  // element offset of each key's row, in k_cache and in v_cache
  int num_keys;
  const float* query;    // [rows, padded_dim], packed by pack_query
  float factor;          // log2(e) * the scale: products with it are scores in the log2 domain
  const RowView* views;  // [rows]
  bool has_alibi;        // never together with a softcap
  float softcap;         // 0 for none; otherwise scores s become softcap * tanh(s / softcap)
};

// The online softmax of some rows: their accumulators over the runs processed so far.
struct SoftmaxState {
  int num_rows;
  float* max;  // [rows], of log2-domain scores
  float* sum;  // [rows]
  float* acc;  // [padded rows, padded_dim], lanes in chunk order
};

struct AttentionScratch {
  float* scores;    // kMaxRowsDirect * kRunKeys
  float* packed_k;  // kRunKeys * padded_dim
  float* packed_v;  // kRunKeys * padded_dim
};

// The kernels for one query dtype, one cache dtype and a range of head_dim.
struct AttentionKernels {
  // Elements per packed row: head_dim rounded up to whole chunks.
  int (*padded_dim)(int head_dim);
  void (*pack_query)(const void* query, int head_dim, float* packed);
  void (*attend_direct)(const KeyRun&, int head_dim, const SoftmaxState&, const AttentionScratch&);
  void (*attend_packed)(const KeyRun&, int head_dim, const SoftmaxState&, const AttentionScratch&);
  // Merges the state of the next part into that of all parts before it, of the same rows.
  void (*merge)(const SoftmaxState& total, const SoftmaxState& part, int head_dim);
  void (*write_output)(const float* acc, float sum, int head_dim, void* out);
};

}  // namespace paged_stream
