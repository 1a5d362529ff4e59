// The check of one sequence's numbers, shared by all ops that read them on the host.
#pragma once

#include <cstdint>

#include "checks.h"
#include "sink_window.h"

namespace paged_stream {

// Checks what SinkWindow's arithmetic assumes. `first`: the position of the chunk's first token,
// checked already.
inline void check_window(const Checker& check, int64_t sequence, const SinkWindow& w,
                         int64_t ring_blocks, int64_t first) {
  check.in_range(w.num_sink_tokens, 0, kMaxCount, "num_sink_tokens of sequence ", sequence);
  check.in_range(w.window_size, 1, kMaxCount, "window_size of sequence ", sequence);
  check.in_range(ring_blocks, 1, kMaxCount, "ring_blocks of sequence ", sequence);
  check.require(!w.is_full() || w.num_sink_tokens == 0, "sequence ", sequence,
                " has full attention, so num_sink_tokens must be 0, got ", w.num_sink_tokens);
  if (w.window_floor == 0) return;
  check.require(!w.is_full(), "sequence ", sequence,
                " has full attention, so window_floor must be 0, got ", w.window_floor);
  check.require(w.window_floor >= w.num_sink_tokens && w.window_floor <= first,
                "window_floor of sequence ", sequence, " must be 0, or at least ",
                w.num_sink_tokens, " and at most its first query's position ", first, ", got ",
                w.window_floor);
}

}  // namespace paged_stream
