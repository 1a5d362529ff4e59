// Attention over the cache and what comes before it, on checked arguments, for every launcher that
// does one or both.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <list>
#include <optional>
#include <vector>

#include "attention_checks.h"
#include "kernels/kernels.h"
#include "ops/attention_plan.h"

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

// A step's sequences, read once for all layers, and how layers of each kind cut them into work.
class AttentionStep {
 public:
  // like: a tensor on the batch's device.
  AttentionStep(const AttentionBatch& batch, const Tensor& like, int64_t num_tokens,
                int64_t block_size);
  AttentionStep(const AttentionStep&) = delete;

  const AttentionPlan& plan(int group_size, int64_t local_window);

 private:
  struct Cut {
    int group_size;
    int64_t local_window;
    AttentionPlan plan;
  };

  std::vector<SequenceView> sequences_;
  std::list<Cut> cuts_;  // plans stay where they are
};

// Queries in `dtype`, strided; the same towards the sinks; out: dense [T, num_heads, head_dim].
void attend(const Heads& query, const Heads& sink_query, DType dtype, const Tensor& k_cache,
            const Tensor& v_cache, AttentionStep& step, const AttentionLayer& layer, void* out);

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

// By what a step's T tokens are turned and where their keys and values go.
struct RotaryStep {
  Angles angles, sink_angles;
  const int64_t* slots;
  int64_t num_tokens;

  static RotaryStep read(const Checker& check, const Tensor& rotary,
                         const std::optional<Tensor>& sink_rotary, const Tensor& slot_mapping,
                         bool interleaved, int64_t num_tokens, const Tensor& cache);
};

// What the op of a similar name does; sink_query.data is null if there are no sink angles.
void rotate_and_store(const Heads& query, const Heads& sink_query, const Heads& key,
                      const Heads& value, DType dtype, const Tensor& k_cache, const Tensor& v_cache,
                      const RotaryStep& step);

}  // namespace paged_stream
