// The arguments of advance_decode, checked as far as that goes without reading a tensor.
#pragma once

#include "checks.h"
#include "decode_rows.h"

namespace paged_stream {

inline DecodeRows checked_decode_rows(const Checker& check, const Tensor& sampled,
                                      const Tensor& generated, const Tensor& num_generated,
                                      const Tensor& num_left, const Tensor& stop_token_ids,
                                      const Tensor& token_ids, const Tensor& positions,
                                      const Tensor& sink_positions, const Tensor& seq_lens,
                                      const Tensor& slot_mapping, const Tensor& block_table,
                                      const Tensor& num_sink_tokens, const Tensor& window_size,
                                      const Tensor& window_floor, const Tensor& ring_blocks,
                                      int64_t block_size) {
  constexpr ScalarType kLong = ScalarType::Long, kInt = ScalarType::Int;
  check.metadata(sampled, "sampled", kLong, "[B]", {kAny}, sampled);
  const int64_t rows = sampled.size(0);
  const auto column = [&](const Tensor& t, const char* name, ScalarType type) {
    check.metadata(t, name, type, "[B]", {rows}, sampled);
  };
  check.metadata(generated, "generated", kLong, "[B, max_generated]", {rows, kAny}, sampled);
  column(num_generated, "num_generated", kLong);
  column(num_left, "num_left", kLong);
  check.metadata(stop_token_ids, "stop_token_ids", kLong, "[B, num_stops]", {rows, kAny}, sampled);
  column(token_ids, "token_ids", kLong);
  column(positions, "positions", kLong);
  column(sink_positions, "sink_positions", kLong);
  column(seq_lens, "seq_lens", kLong);
  column(slot_mapping, "slot_mapping", kLong);
  check.metadata(block_table, "block_table", kInt, "[B, width]", {rows, kAny}, sampled);
  column(num_sink_tokens, "num_sink_tokens", kInt);
  column(window_size, "window_size", kInt);
  column(window_floor, "window_floor", kLong);
  column(ring_blocks, "ring_blocks", kInt);
  check.require(block_size >= 1, "block_size must be at least 1");
  return {sampled.const_data_ptr<int64_t>(),
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
}

}  // namespace paged_stream
