// Advances one decode step: the sampled tokens become the next step's input.

#include <torch/csrc/stable/library.h>

#include <optional>
#include <vector>

#include "decode_row_checks.h"
#include "window_checks.h"

namespace paged_stream {
namespace {

// Checks a running row: room for the token and a column for the next position.
void check_row(const Checker& check, const DecodeRows& rows, int64_t row) {
  const MutableBatch& batch = rows.batch;
  check.require(rows.has_room(row), "row ", row,
                " has no room in generated: num_generated must be in [0, ", rows.max_generated,
                "), got ", rows.num_generated[row]);
  const int64_t position = batch.positions[row];
  check.in_range(position, 0, kMaxPosition - 1, "positions[", row, "]");
  check_window(check, row, batch.sink_window(row), batch.ring_blocks[row], position);
  if (rows.num_left[row] == 1) return;  // the last token needs no column for the next position
  check.require(rows.next_column(row) < batch.table_width, "position ", position + 1,
                " needs column ", rows.next_column(row), ", but the block-table row has only ",
                batch.table_width, " columns");
}

// All rows are read and checked before any is written.
void advance_decode(Tensor sampled, Tensor generated, Tensor num_generated, Tensor num_left,
                    Tensor stop_token_ids, BatchTensors batch, int64_t block_size) {
  constexpr Checker check("advance_decode");
  const DecodeRows rows = checked_decode_rows(check, sampled, generated, num_generated, num_left,
                                              stop_token_ids, batch, block_size);
  std::vector<std::optional<NextInput>> inputs(sampled.size(0));
  for (size_t row = 0; row < inputs.size(); ++row) {
    if (!rows.is_running(row)) continue;
    check_row(check, rows, row);
    inputs[row] = rows.next(row);
  }
  for (size_t row = 0; row < inputs.size(); ++row) {
    if (inputs[row]) rows.write(row, *inputs[row]);
  }
}

}  // namespace
}  // namespace paged_stream

STABLE_TORCH_LIBRARY_IMPL(paged_stream, CPU, m) {
  m.impl("advance_decode", TORCH_BOX(&paged_stream::advance_decode));
}
