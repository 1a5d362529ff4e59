// Runs a planned batch of attention with the kernels of one instruction set.
#pragma once

#include <cstdint>

#include "checks.h"
#include "kernels/attention.h"
#include "ops/attention_plan.h"

namespace paged_stream {

struct AttentionInputs {
  const char* query;
  const char* sink_query;     // the same as query if the caller gave none
  int64_t query_stride;       // bytes between tokens
  int64_t sink_query_stride;  // bytes between tokens
  char* out;
  const void* k_cache;
  const void* v_cache;
  int64_t num_blocks;
  int64_t block_stride;  // elements
  int64_t element_size;  // of queries and outputs
  int64_t num_heads;
  int64_t num_kv_heads;
  int64_t block_size;
  int64_t row_size;  // elements per row of the cache, with its scale
  int64_t head_dim;
  float scale;
  const float* alibi_slopes;  // or null
  float softcap;              // or 0
  int64_t local_window;       // or kNoLocalWindow

  int64_t group_size() const { return num_heads / num_kv_heads; }
};

void run_attention(const Checker& check, const AttentionInputs& inputs, const AttentionPlan& plan,
                   const AttentionKernels& kernels);

}  // namespace paged_stream
