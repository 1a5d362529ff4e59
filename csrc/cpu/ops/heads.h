// Heads of tokens, and their rotary angles, as plain pointers.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <span>

#include "batch_view.h"
#include "checks.h"

namespace paged_stream {

// Heads of tokens, contiguous within a token; `stride` elements between tokens.
struct Heads {
  void* data;
  int64_t stride;
  int64_t num_heads;

  char* token(int64_t index, int64_t element_size) const {
    return static_cast<char*>(data) + index * stride * element_size;
  }

  // Returns the `count` heads from head `first` on.
  Heads from(int64_t first, int64_t count, int64_t head_bytes) const {
    return {static_cast<char*>(data) + first * head_bytes, stride, count};
  }
};

// Slots of tokens in the cache; -1 for none.
using Slots = std::span<const int64_t>;

inline Slots slots_of(const Batch& batch) { return Slots(batch.slot_mapping, batch.num_tokens); }

// Angles of every token, [T, dim], cosines then sines. Without angles, rows are only copied.
struct Angles {
  const float* data = nullptr;
  int64_t dim = 0;
  bool interleaved = false;

  Angles() = default;
  Angles(const std::optional<Tensor>& rotary, bool pairs) : interleaved(pairs) {
    if (!rotary) return;
    data = rotary->const_data_ptr<float>();
    dim = rotary->size(1);
  }
};

}  // namespace paged_stream
