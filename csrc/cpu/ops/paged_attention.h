// Attention over the cache on checked arguments, for every launcher that does it.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <list>
#include <vector>

#include "attention_checks.h"
#include "number_types.h"
#include "ops/attention_plan.h"
#include "ops/heads.h"

namespace paged_stream {

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

}  // namespace paged_stream
