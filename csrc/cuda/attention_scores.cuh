// Turns query-key products into scores in the log2 domain: scale, softcap, ALiBi, masks.
#pragma once

#include "attention_tile.h"
#include "device.cuh"

namespace paged_stream {

constexpr float kLog2E = 1.44269504f;
constexpr float kHidden = -INFINITY;

// The layer's rule for turning products into scores.
struct ScoreRule {
  float factor;  // scale * log2(e), or scale / softcap
  float cap;     // softcap * log2(e), or 0 for none

  __device__ __forceinline__ explicit ScoreRule(const PagedAttentionArguments& in)
      : factor(in.softcap != 0.0f ? in.score_scale / in.softcap : in.score_scale * kLog2E),
        cap(in.softcap * kLog2E) {}

  // Applies the softcap to a product that was multiplied by `factor`.
  __device__ __forceinline__ float capped(float score) const { return cap * fast_tanh(score); }

 private:
  // Computes (1 - e) / (1 + e) with e = exp(-2 |x|), which is at most 1.
  static __device__ __forceinline__ float fast_tanh(float x) {
    const float e = fast_exp2(-2.0f * kLog2E * fabsf(x));
    return copysignf((1.0f - e) / (1.0f + e), x);
  }
};

// A row's masks and ALiBi. MmaAttention keeps it in shared memory, because registers are scarce and
// most steps do not use it.
struct RowRule {
  VisibleKeys visible;
  float slope;  // of ALiBi, * log2(e), or 0

  __device__ __forceinline__ RowRule(const PagedAttentionArguments& in, const AttentionTile& tile,
                                     int kv_head, int row)
      : visible(tile.visible_keys(row)), slope(0.0f) {
    if (in.alibi_slopes == nullptr) return;
    slope = in.alibi_slopes[kv_head * in.group_size + tile.head_in_group(row)] * kLog2E;
  }

  // Returns the score with ALiBi, or kHidden if the key is hidden from the row or not below `end`.
  __device__ __forceinline__ float operator()(float score, int key, int num_sinks, int end) const {
    score -= slope * static_cast<float>(visible.distance(key, num_sinks));
    return key < end && visible.sees(key, num_sinks) ? score : kHidden;
  }
};

// A row's running softmax with weights 2^(score - max). `sum` may be this thread's share only.
struct RunningSoftmax {
  float max = kHidden;
  float sum = 0.0f;

  // Folds in a step's largest score. Returns the factor to rescale all earlier sums by.
  __device__ __forceinline__ float raise(float largest) {
    const float raised = fmaxf(max, largest);
    const float shrink = weight_of(max, raised);
    max = raised;
    sum *= shrink;
    return shrink;
  }
  __device__ __forceinline__ float weight(float score) const { return weight_of(score, max); }

  // Returns 0 for hidden scores even while every score so far is hidden.
  static __device__ __forceinline__ float weight_of(float score, float max) {
    return fast_exp2(score - (max == kHidden ? 0.0f : max));
  }
};

}  // namespace paged_stream
