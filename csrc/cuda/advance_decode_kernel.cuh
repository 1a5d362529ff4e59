// Advances one decode step on the device: the sampled tokens become the next input.
//
// Bytes: some hundred per sequence, one thread each; the time is that of one launch.
#pragma once

#include "decode_rows.h"
#include "elements.cuh"
#include "launch.cuh"

namespace paged_stream {

constexpr int kAdvanceThreads = 64;

__global__ void __launch_bounds__(kAdvanceThreads)
    advance_decode_kernel(const DecodeRows rows, const int64_t count) {
  const int64_t row = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (row >= count || !rows.is_running(row)) return;
  // The CPU op rejects a row whose token or next position has no place; here it is skipped.
  if (!rows.has_room(row) || !rows.has_valid_window(row)) return;
  const bool goes_on = rows.num_left[row] > 1;
  if (goes_on && rows.next_column(row) >= rows.batch.table_width) return;
  rows.write(row, rows.next(row));
}

inline void run_advance_decode(const DecodeRows& rows, int64_t count, Stream stream) {
  if (count == 0) return;
  launch(advance_decode_kernel, ceil_div(count, kAdvanceThreads), kAdvanceThreads, 0, stream, rows,
         count);
}

}  // namespace paged_stream
