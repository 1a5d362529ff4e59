// Computes the positions and slots of a step's tokens, before any layer runs.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "batch.h"
#include "decode_rows.h"
#include "window_checks.h"

namespace paged_stream {
namespace {

// The op's arguments for one sequence.
struct Sequence {
  int64_t length, start, num_sink_tokens, window_size, window_floor, ring_blocks, row_length;

  SinkWindow window() const { return {num_sink_tokens, window_size, window_floor}; }
};

// t: [7, B], a row per field of SequenceColumns in paged_stream/ops/lay_out_batch.py, in its order.
std::vector<Sequence> read_sequences(const Checker& check, const Tensor& t) {
  check.metadata(t, "sequences", ScalarType::Long, "[7, B]", {7, kAny}, t);
  const int64_t count = t.size(1);
  check.in_range(count, 0, kMaxCount, "the number of sequences");
  const auto* const numbers = t.const_data_ptr<int64_t>();
  std::vector<Sequence> sequences;
  sequences.reserve(count);
  for (int64_t b = 0; b < count; ++b) {
    const auto column = [&](int64_t field) { return numbers[field * count + b]; };
    const Sequence s{column(0), column(1), column(2), column(3), column(4), column(5), column(6)};
    check.in_range(s.length, 0, kMaxCount, "length of sequence ", b);
    check.in_range(s.start, 0, kMaxPosition - kMaxCount, "start of sequence ", b);
    check.in_range(s.row_length, 1, kMaxCount, "row_length of sequence ", b);
    check_window(check, b, s.window(), s.ring_blocks, s.start);
    sequences.push_back(s);
  }
  return sequences;
}

struct Totals {
  int64_t num_tokens = 0, num_entries = 0, width = 0;

  explicit Totals(const std::vector<Sequence>& sequences) {
    for (const Sequence& s : sequences) {
      num_tokens += s.length;
      num_entries += s.row_length;
      width = std::max(width, s.row_length);
    }
  }
};

void write_sequence(const MutableBatch& batch, int64_t b, const Sequence& s, const int32_t* row) {
  batch.query_start_loc[b + 1] = static_cast<int32_t>(batch.query_start_loc[b] + s.length);
  batch.seq_lens[b] = s.start + s.length;
  batch.num_sink_tokens[b] = static_cast<int32_t>(s.num_sink_tokens);
  batch.window_size[b] = static_cast<int32_t>(s.window_size);
  batch.window_floor[b] = s.window_floor;
  batch.ring_blocks[b] = static_cast<int32_t>(s.ring_blocks);
  int32_t* const to = batch.block_row(b);
  std::fill(std::copy_n(row, s.row_length, to), to + batch.table_width, -1);
}

// Writes the sequence's tokens, starting at token t of the batch. Returns whether any of them has a
// sink position below its position.
bool write_tokens(const Checker& check, const MutableBatch& batch, int64_t t, const Sequence& s,
                  const int32_t* row, int64_t block_size) {
  const SinkWindow window = s.window();
  bool has_gap = false;
  for (int64_t position = s.start; position < s.start + s.length; ++position, ++t) {
    const int64_t column = window.column(position / block_size, s.ring_blocks, block_size);
    check.require(column < s.row_length, "position ", position, " needs column ", column,
                  ", but the block-table row has only ", s.row_length, " columns");
    batch.positions[t] = position;
    batch.sink_positions[t] = window.sink_position(position);
    batch.slot_mapping[t] = slot_of(position, row[column], block_size);
    has_gap |= batch.sink_positions[t] < position;
  }
  return has_gap;
}

std::tuple<BatchTensors, bool> lay_out_batch(Tensor token_ids, Tensor block_rows, Tensor sequences,
                                             int64_t block_size) {
  constexpr Checker check("lay_out_batch");
  check.in_range(block_size, 1, kMaxCount, "block_size");
  const auto rows = read_sequences(check, sequences);
  const Totals totals(rows);
  check.in_range(totals.num_tokens, 0, kMaxCount, "the sum of lengths");
  check.metadata(token_ids, "token_ids", ScalarType::Int, "[sum of lengths]", {totals.num_tokens},
                 sequences);
  check.metadata(block_rows, "block_rows", ScalarType::Int, "[sum of row lengths]",
                 {totals.num_entries}, sequences);
  BatchTensors tensors =
      new_batch(sequences, totals.num_tokens, static_cast<int64_t>(rows.size()), totals.width);
  const auto batch = read_batch<MutableBatch>(check, tensors, sequences, totals.num_tokens);
  std::copy_n(token_ids.const_data_ptr<int32_t>(), totals.num_tokens, batch.token_ids);
  batch.query_start_loc[0] = 0;
  const int32_t* row = block_rows.const_data_ptr<int32_t>();
  bool has_gap = false;
  for (size_t b = 0; b < rows.size(); ++b) {
    const int64_t first = batch.query_start_loc[b];
    write_sequence(batch, static_cast<int64_t>(b), rows[b], row);
    has_gap |= write_tokens(check, batch, first, rows[b], row, block_size);
    row += rows[b].row_length;
  }
  return {tensors, has_gap};
}

}  // namespace
}  // namespace paged_stream

STABLE_TORCH_LIBRARY_IMPL(paged_stream, CPU, m) {
  m.impl("lay_out_batch", TORCH_BOX(&paged_stream::lay_out_batch));
}
