// The arguments of paged_attention, and what can be checked of them without reading a tensor.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cmath>
#include <cstdint>
#include <optional>
#include <string>

#include "checks.h"

namespace paged_stream {

// A step's sequences; see the op's documentation.
struct AttentionBatch {
  const Tensor& block_table;
  const Tensor& query_start_loc;
  const Tensor& seq_lens;
  const Tensor& num_sink_tokens;
  const Tensor& window_size;
  const Tensor& window_floor;
  const Tensor& ring_blocks;
};

struct AttentionLayer {
  double scale;
  const float* alibi_slopes;  // [num_heads], or null
  double softcap;             // 0 for none
  int64_t local_window;       // 0 for none
};

class AttentionChecker : public Checker {
 public:
  constexpr AttentionChecker() : Checker("paged_attention") {}

  void heads(const Tensor& query, const std::optional<Tensor>& sink_query, const Tensor& k_cache,
             const Tensor& v_cache) const {
    cache_pair(k_cache, v_cache);
    const char* layout = "[T, num_heads, head_dim]";
    Checker::heads(query, "query", layout, kAny, kAny, k_cache);
    if (sink_query) {
      Checker::heads(*sink_query, "sink_query", layout, query.size(0), query.size(1), k_cache);
      dtype(*sink_query, "sink_query", query.scalar_type());
    }
    STD_TORCH_CHECK(query.size(1) >= 1 && query.size(1) % k_cache.size(1) == 0,
                    "paged_attention: num_heads must be a multiple of num_kv_heads ",
                    k_cache.size(1), ", got ", query.size(1));
  }

  // like: a tensor on the layer's device.
  AttentionLayer layer(double scale, const std::optional<Tensor>& alibi_slopes, double softcap,
                       int64_t local_window, int64_t num_heads, const Tensor& like) const {
    // The kernels compute in float32, where it must neither vanish nor overflow.
    const bool is_cap = softcap > 0 && std::isnormal(static_cast<float>(softcap));
    STD_TORCH_CHECK(softcap == 0 || is_cap,
                    "paged_attention: softcap must be a positive float32, or 0 for none, got ",
                    softcap);
    require(softcap == 0 || !alibi_slopes, "softcap and alibi_slopes must not both be given");
    require(local_window >= 0, "local_window must be at least 1, or 0 for none, got ",
            local_window);
    if (!alibi_slopes) return {scale, nullptr, softcap, local_window};
    metadata(*alibi_slopes, "alibi_slopes", ScalarType::Float, "[num_heads]", {num_heads}, like);
    return {scale, alibi_slopes->const_data_ptr<float>(), softcap, local_window};
  }

  void batch(const AttentionBatch& batch, const Tensor& like) const {
    const Tensor& block_table = batch.block_table;
    shape(block_table, "block_table", "[B, width]", {kAny, kAny});
    dtype(block_table, "block_table", ScalarType::Int);
    dense(block_table, "block_table", 1);
    same_device(block_table, "block_table", like);
    const int64_t b = block_table.size(0);
    metadata(batch.query_start_loc, "query_start_loc", ScalarType::Int, "[B + 1]", {b + 1}, like);
    metadata(batch.seq_lens, "seq_lens", ScalarType::Long, "[B]", {b}, like);
    metadata(batch.num_sink_tokens, "num_sink_tokens", ScalarType::Int, "[B]", {b}, like);
    metadata(batch.window_size, "window_size", ScalarType::Int, "[B]", {b}, like);
    metadata(batch.window_floor, "window_floor", ScalarType::Long, "[B]", {b}, like);
    metadata(batch.ring_blocks, "ring_blocks", ScalarType::Int, "[B]", {b}, like);
  }
};

}  // namespace paged_stream
