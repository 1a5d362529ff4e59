// The interface of the attention kernels, which process query rows against a run of keys.
#pragma once

#include <cstdint>

namespace paged_stream {

// A run's offsets are padded to a multiple of this with copies of the last one, so kernels may load
// whole vectors of keys but must not use the padding.
constexpr int kKeyPadding = 64;

// Longest runs that fit the scratch of the two attention kernels.
constexpr int kMaxRunDirect = 768;
constexpr int kMaxRunPacked = 128;
// Up to this many rows, reading K and V in place is faster than packing them first.
constexpr int kMaxRowsDirect = 8;
// Packed queries, scores and accumulators have a multiple of this many rows.
constexpr int kRowPadding = 6;
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

// Keys at consecutive positions, all of which the rows multiply with the same queries.
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
  float* scores;    // kMaxRowsDirect * kMaxRunDirect or more
  float* packed_k;  // kMaxRunPacked * padded_dim
  float* packed_v;  // kMaxRunPacked * padded_dim
};

// The kernels for one query dtype, one cache dtype and a range of head_dim.
struct AttentionKernels {
  // Elements per packed row: head_dim rounded up to whole chunks.
  int (*padded_dim)(int head_dim);
  void (*pack_query)(const void* query, int head_dim, float* packed);
  void (*attend_direct)(const KeyRun&, int head_dim, const SoftmaxState&, const AttentionScratch&);
  void (*attend_packed)(const KeyRun&, int head_dim, const SoftmaxState&, const AttentionScratch&);
  // Merges num_parts states of the same shape, part_stride floats apart, into the first.
  void (*merge)(const SoftmaxState& first, int64_t part_stride, int num_parts, int head_dim);
  void (*write_output)(const float* acc, float sum, int head_dim, void* out);
};

}  // namespace paged_stream
