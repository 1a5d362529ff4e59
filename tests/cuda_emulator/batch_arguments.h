// Reads a step's batch from a call's arguments: its tensors, then T, B and the table's width.
#pragma once

#include "batch_view.h"
#include "driver.h"

namespace paged_stream {

template <class View>
View read_batch(emulator::Arguments& args) {
  View batch{};
  batch.token_ids = args.buffer<int64_t>();
  batch.positions = args.buffer<int64_t>();
  batch.sink_positions = args.buffer<int64_t>();
  batch.slot_mapping = args.buffer<int64_t>();
  batch.block_table = args.buffer<int32_t>();
  batch.query_start_loc = args.buffer<int32_t>();
  batch.seq_lens = args.buffer<int64_t>();
  batch.num_sink_tokens = args.buffer<int32_t>();
  batch.window_size = args.buffer<int32_t>();
  batch.window_floor = args.buffer<int64_t>();
  batch.ring_blocks = args.buffer<int32_t>();
  batch.num_tokens = args.integer();
  batch.num_sequences = args.integer();
  batch.table_width = batch.table_stride = args.integer();
  return batch;
}

}  // namespace paged_stream
