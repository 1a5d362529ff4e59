// The entry of advance_decode.

#include "advance_decode_kernel.cuh"
#include "batch_arguments.h"
#include "driver.h"

using namespace paged_stream;

EMULATED(advance_decode) {
  DecodeRows rows{};
  rows.sampled = args.buffer<int64_t>();
  rows.generated = args.buffer<int64_t>();
  rows.num_generated = args.buffer<int64_t>();
  rows.num_left = args.buffer<int64_t>();
  rows.stop_token_ids = args.buffer<int64_t>();
  rows.batch = read_batch<MutableBatch>(args);
  rows.max_generated = args.integer();
  rows.num_stops = args.integer();
  rows.block_size = args.integer();
  run_advance_decode(rows, rows.batch.num_sequences, Stream{});
}
