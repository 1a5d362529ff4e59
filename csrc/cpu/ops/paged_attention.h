// Attention over the cache on checked arguments, shared by the launchers.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include "attention_checks.h"
#include "number_types.h"
#include "ops/attention_step.h"
#include "ops/heads.h"

namespace paged_stream {

// query, sink_query: in `dtype`, strided. out: contiguous [T, num_heads, head_dim].
void attend(const Heads& query, const Heads& sink_query, DType dtype, const Tensor& k_cache,
            const Tensor& v_cache, AttentionStep& step, const Scoring& scoring, void* out);

}  // namespace paged_stream
