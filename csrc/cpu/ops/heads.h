// Heads of tokens, and the angles that turn them, as plain pointers.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <span>

#include "checks.h"

namespace paged_stream {

// Heads of tokens, dense within a token; `stride` elements lie between tokens.
struct Heads {
  void* data;
  int64_t stride;
  int64_t num_heads;

  char* token(int64_t index, int64_t element_size) const {
    return static_cast<char*>(data) + index * stride * element_size;
  }

  // The `count` heads that begin `first` heads further on.
  Heads from(int64_t first, int64_t count, int64_t head_bytes) const {
    return {static_cast<char*>(data) + first * head_bytes, stride, count};
  }
};

// Where the rows of tokens are in the cache; -1 for nowhere.
using Slots = std::span<const int64_t>;

// Angles of every token, [T, dim], cosines then sines; none at all only copies.
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
