// Advances one decode step: the sampled tokens become the next step's input.

#include <torch/csrc/stable/library.h>

#include "decode_row_checks.h"

namespace paged_stream {
namespace {

// Checks what DecodeRows::advance assumes: room for the token and a column for the next position.
void validate(const Checker& check, const DecodeRows& rows, int64_t row) {
  if (!rows.is_running(row)) return;
  const int64_t count = rows.num_generated[row];
  check.require(count >= 0 && count < rows.max_generated, "row ", row, " has ", count,
                " of at most ", rows.max_generated, " generated tokens");
  check.require(rows.batch.positions[row] >= 0 && rows.batch.ring_blocks[row] >= 1, "row ", row,
                " must have a position of at least 0 and at least one column");
  // A sequence's last token needs no column for the next position.
  const bool goes_on = rows.num_left[row] > 1;
  check.require(!goes_on || rows.next_column(row) < rows.batch.table_width, "position ",
                rows.batch.positions[row] + 1, " is in column ", rows.next_column(row),
                " of a row of ", rows.batch.table_width);
}

void advance_decode(Tensor sampled, Tensor generated, Tensor num_generated, Tensor num_left,
                    Tensor stop_token_ids, BatchTensors batch, int64_t block_size) {
  constexpr Checker check("advance_decode");
  const DecodeRows rows = checked_decode_rows(check, sampled, generated, num_generated, num_left,
                                              stop_token_ids, batch, block_size);
  for (int64_t row = 0; row < sampled.size(0); ++row) {
    validate(check, rows, row);
    rows.advance(row);
  }
}

}  // namespace
}  // namespace paged_stream

STABLE_TORCH_LIBRARY_IMPL(paged_stream, CPU, m) {
  m.impl("advance_decode", TORCH_BOX(&paged_stream::advance_decode));
}
