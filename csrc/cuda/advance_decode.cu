// Launcher of advance_decode. Numbers are not read on the host: a row without a place for its token
// stays as it is.

#include "advance_decode_kernel.cuh"
#include "tensors.cuh"

namespace paged_stream {
namespace {

void advance_decode(Tensor sampled, Tensor generated, Tensor num_generated, Tensor num_left,
                    Tensor stop_token_ids, Tensor token_ids, Tensor positions,
                    Tensor sink_positions, Tensor seq_lens, Tensor slot_mapping, Tensor block_table,
                    Tensor num_sink_tokens, Tensor window_size, Tensor window_floor,
                    Tensor ring_blocks, int64_t block_size) {
  constexpr Checker check("advance_decode");
  check.decode_rows(sampled, generated, num_generated, num_left, stop_token_ids, token_ids,
                    positions, sink_positions, seq_lens, slot_mapping, block_table, num_sink_tokens,
                    window_size, window_floor, ring_blocks, block_size);
  const DecodeRows rows{sampled.const_data_ptr<int64_t>(),
                        generated.mutable_data_ptr<int64_t>(),
                        num_generated.mutable_data_ptr<int64_t>(),
                        num_left.mutable_data_ptr<int64_t>(),
                        stop_token_ids.const_data_ptr<int64_t>(),
                        token_ids.mutable_data_ptr<int64_t>(),
                        positions.mutable_data_ptr<int64_t>(),
                        sink_positions.mutable_data_ptr<int64_t>(),
                        seq_lens.mutable_data_ptr<int64_t>(),
                        slot_mapping.mutable_data_ptr<int64_t>(),
                        block_table.const_data_ptr<int32_t>(),
                        num_sink_tokens.const_data_ptr<int32_t>(),
                        window_size.const_data_ptr<int32_t>(),
                        window_floor.const_data_ptr<int64_t>(),
                        ring_blocks.const_data_ptr<int32_t>(),
                        generated.size(1),
                        stop_token_ids.size(1),
                        block_table.size(1),
                        block_size};
  const DeviceScope device(sampled);
  run_advance_decode(rows, sampled.size(0), device.stream());
}

}  // namespace
}  // namespace paged_stream

STABLE_TORCH_LIBRARY_IMPL(paged_stream, CUDA, m) {
  m.impl("advance_decode", TORCH_BOX(&paged_stream::advance_decode));
}
