// The checks of advance_decode's arguments that need no tensor contents.
#pragma once

#include "batch.h"
#include "decode_rows.h"

namespace paged_stream {

inline DecodeRows checked_decode_rows(const Checker& check, const Tensor& sampled,
                                      const Tensor& generated, const Tensor& num_generated,
                                      const Tensor& num_left, const Tensor& stop_token_ids,
                                      const BatchTensors& batch, int64_t block_size) {
  constexpr ScalarType kLong = ScalarType::Long;
  check.metadata(sampled, "sampled", kLong, "[B]", {kAny}, sampled);
  const int64_t b = sampled.size(0);
  check.metadata(generated, "generated", kLong, "[B, max_generated]", {b, kAny}, sampled);
  check.metadata(num_generated, "num_generated", kLong, "[B]", {b}, sampled);
  check.metadata(num_left, "num_left", kLong, "[B]", {b}, sampled);
  check.metadata(stop_token_ids, "stop_token_ids", kLong, "[B, num_stops]", {b, kAny}, sampled);
  check.in_range(block_size, 1, kMaxCount, "block_size");
  const auto fields = read_batch<MutableBatch>(check, batch, sampled, b);
  check.require(fields.num_sequences == b, "block_table must have a row for each of the ", b,
                " tokens, got ", fields.num_sequences);
  return {sampled.const_data_ptr<int64_t>(),
          generated.mutable_data_ptr<int64_t>(),
          num_generated.mutable_data_ptr<int64_t>(),
          num_left.mutable_data_ptr<int64_t>(),
          stop_token_ids.const_data_ptr<int64_t>(),
          fields,
          generated.size(1),
          stop_token_ids.size(1),
          block_size};
}

}  // namespace paged_stream
