// The arguments of paged_attention, and the checks on them that need no tensor contents.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cmath>
#include <cstdint>
#include <optional>

#include "checks.h"
#include "sink_window.h"

namespace paged_stream {

// How scores are computed from queries and keys.
struct Scoring {
  double scale;
  const float* alibi_slopes;  // [num_heads], or null
  double softcap;             // 0 for none
  int64_t local_window;       // kNoLocalWindow for none
};

class AttentionChecker : public Checker {
 public:
  using Checker::Checker;

  // Checks the queries and sink queries, [T, num_heads, head_dim], and the cache that they read.
  void attention_heads(const Tensor& query, const std::optional<Tensor>& sink_query,
                       const Tensor& k_cache, const Tensor& v_cache) const {
    cache_pair(k_cache, v_cache);
    const char* layout = "[T, num_heads, head_dim]";
    heads(query, "query", layout, kAny, kAny, k_cache);
    if (sink_query) {
      heads(*sink_query, "sink_query", layout, query.size(0), query.size(1), k_cache);
      dtype(*sink_query, "sink_query", query.scalar_type());
    }
    require(query.size(1) >= 1 && query.size(1) % k_cache.size(1) == 0,
            "num_heads must be a multiple of num_kv_heads ", k_cache.size(1), ", got ",
            query.size(1));
  }

  // local_window: 0 for none. like: a tensor on the layer's device.
  Scoring scoring(double scale, const std::optional<Tensor>& alibi_slopes, double softcap,
                  int64_t local_window, int64_t num_heads, const Tensor& like) const {
    // The kernels use softcap in float32, where it must neither vanish nor overflow.
    const bool is_cap = softcap > 0 && std::isnormal(static_cast<float>(softcap));
    require(softcap == 0 || is_cap, "softcap must be a positive float32, or 0 for none, got ",
            softcap);
    require(softcap == 0 || !alibi_slopes, "softcap and alibi_slopes must not both be given");
    require(local_window >= 0, "local_window must be at least 1, or 0 for none, got ",
            local_window);
    const float* slopes = nullptr;
    if (alibi_slopes) {
      metadata(*alibi_slopes, "alibi_slopes", ScalarType::Float, "[num_heads]", {num_heads}, like);
      slopes = alibi_slopes->const_data_ptr<float>();
    }
    return {scale, slopes, softcap, local_window == 0 ? kNoLocalWindow : local_window};
  }
};

}  // namespace paged_stream
