// Which positions a query attends to, and which blocks hold them. Mirrors scheduler/sink_window.py
// for kernels. Positions are int64: a stream has no end.
#pragma once

#include <cstdint>

#include "host_device.h"

namespace paged_stream {

// The window size that means full attention: nothing is evicted and there are no sink tokens.
constexpr int64_t kFullAttention = INT32_MAX;
// The local window of a layer without one.
constexpr int64_t kNoLocalWindow = INT64_MAX;

struct SinkWindow {
  int64_t num_sink_tokens;  // 0 for full attention
  int64_t window_size;      // kFullAttention for full attention
  int64_t window_floor;     // 0 or at least num_sink_tokens; 0 for full attention

  PAGED_STREAM_HOST_DEVICE bool is_full() const { return window_size == kFullAttention; }

  PAGED_STREAM_HOST_DEVICE bool is_visible(int64_t key_position, int64_t query_position,
                                           int64_t local_window = kNoLocalWindow) const {
    if (key_position > query_position) return false;
    if (key_position < num_sink_tokens) {
      return key_position >= sink_start(query_position, local_window);
    }
    return key_position >= window_start(query_position, local_window);
  }

  PAGED_STREAM_HOST_DEVICE int64_t window_start(int64_t query_position,
                                                int64_t local_window = kNoLocalWindow) const {
    const bool is_local = is_full() || local_window < window_size;
    const int64_t start = run_start(query_position, is_local ? local_window : window_size);
    return start < window_floor ? window_floor : start;
  }

  PAGED_STREAM_HOST_DEVICE int64_t sink_start(int64_t query_position, int64_t local_window) const {
    return run_start(sink_position(query_position), local_window);
  }

  PAGED_STREAM_HOST_DEVICE int64_t num_visible(int64_t query_position) const {
    return sink_position(query_position) + 1;
  }

  PAGED_STREAM_HOST_DEVICE int64_t sink_position(int64_t query_position) const {
    if (is_full()) return query_position;
    const int64_t start = window_start(query_position);
    return start < num_sink_tokens ? query_position : num_sink_tokens + query_position - start;
  }

  PAGED_STREAM_HOST_DEVICE int64_t num_sink_blocks(int64_t block_size) const {
    return is_full() ? 0 : (num_sink_tokens + block_size - 1) / block_size;
  }

  PAGED_STREAM_HOST_DEVICE int64_t ring_blocks(int64_t chunk, int64_t block_size) const {
    return (window_size - 2 + chunk + block_size - 1) / block_size + 1;
  }

  PAGED_STREAM_HOST_DEVICE int64_t max_chunk(int64_t ring_blocks, int64_t block_size) const {
    return (ring_blocks - 1) * block_size - window_size + 2;
  }

  PAGED_STREAM_HOST_DEVICE int64_t column(int64_t logical_block, int64_t ring_blocks,
                                          int64_t block_size) const {
    const int64_t sinks = num_sink_blocks(block_size);
    return logical_block < sinks ? logical_block : sinks + (logical_block - sinks) % ring_blocks;
  }

  // Returns the first of the `length` positions that end with `last`.
  PAGED_STREAM_HOST_DEVICE static int64_t run_start(int64_t last, int64_t length) {
    return last < length ? 0 : last - length + 1;
  }
};

}  // namespace paged_stream
