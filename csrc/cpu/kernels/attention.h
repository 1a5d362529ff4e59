// Attention of some rows over a run of keys, as launchers ask for it.
#pragma once

#include <cstdint>

namespace paged_stream {

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
  float* packed_v;  // kMaxRunPacked * padded_dim
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

}  // namespace paged_stream
