// The largest numbers that ops take. Within these limits, no op's int64 arithmetic overflows.
#pragma once

#include <cstdint>

namespace paged_stream {

// Of tokens, sequences, columns, slots, features, and the sizes of sinks, windows and blocks.
constexpr int64_t kMaxCount = INT32_MAX;
// Of positions and sequence lengths.
constexpr int64_t kMaxPosition = (int64_t{1} << 62) - 1;
// Of heads, and of heads that share keys and values.
constexpr int64_t kMaxHeads = 1 << 16;

}  // namespace paged_stream
