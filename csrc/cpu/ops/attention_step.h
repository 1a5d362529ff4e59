// A step's sequences, read once for all layers, and their plans for each kind of layer.
#pragma once

#include <cstdint>
#include <list>
#include <vector>

#include "batch_view.h"
#include "checks.h"
#include "ops/attention_plan.h"

namespace paged_stream {

class AttentionStep {
 public:
  // Checks the batch's values against each other and against num_tokens.
  AttentionStep(const Checker& check, const Batch& batch, int64_t num_tokens,
                const Tensor& k_cache);
  AttentionStep(const AttentionStep&) = delete;

  // Names the op in errors that are found while it runs.
  const Checker& checker() const { return check_; }

  const AttentionPlan& plan(int group_size, int64_t local_window);

 private:
  struct Cut {
    int group_size;
    int64_t local_window;
    AttentionPlan plan;
  };

  const Checker check_;
  std::vector<SequenceView> sequences_;
  std::list<Cut> cuts_;  // a list, so that references to plans stay valid
};

}  // namespace paged_stream
