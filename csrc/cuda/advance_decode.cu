// Launcher of advance_decode. The host reads no tensor: the kernel skips a row with no room left.

#include "advance_decode_kernel.cuh"
#include "decode_row_checks.h"
#include "tensors.cuh"

namespace paged_stream {
namespace {

void advance_decode(Tensor sampled, Tensor generated, Tensor num_generated, Tensor num_left,
                    Tensor stop_token_ids, BatchTensors batch, int64_t block_size) {
  constexpr Checker check("advance_decode");
  const DecodeRows rows = checked_decode_rows(check, sampled, generated, num_generated, num_left,
                                              stop_token_ids, batch, block_size);
  const DeviceScope device(sampled);
  run_advance_decode(rows, sampled.size(0), device.stream());
}

}  // namespace
}  // namespace paged_stream

STABLE_TORCH_LIBRARY_IMPL(paged_stream, CUDA, m) {
  m.impl("advance_decode", TORCH_BOX(&paged_stream::advance_decode));
}
