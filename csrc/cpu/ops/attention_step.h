// A step's sequences, read once for all layers, and how layers of each kind cut them into work.
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
  // Checks the numbers of the batch against each other, and that num_tokens are in it.
  AttentionStep(const Checker& check, const Batch& batch, int64_t num_tokens, int64_t block_size);
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

}  // namespace paged_stream
