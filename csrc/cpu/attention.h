// Attention over the cache and what comes before it, for launchers that do more in one op.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>

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
  const std::optional<Tensor>& alibi_slopes;
  double softcap;        // 0 for none
  int64_t local_window;  // 0 for none
};

// Checks all arguments; out: dense [T, num_heads, head_dim].
void attend(const Tensor& query, const std::optional<Tensor>& sink_query, const Tensor& k_cache,
            const Tensor& v_cache, const AttentionBatch& batch, const AttentionLayer& layer,
            void* out);

// The op of that name.
void rotary_and_cache(const Tensor& query, const std::optional<Tensor>& sink_query,
                      const Tensor& key, const Tensor& value, const Tensor& k_cache,
                      const Tensor& v_cache, const Tensor& rotary,
                      const std::optional<Tensor>& sink_rotary, const Tensor& slot_mapping,
                      bool interleaved);

}  // namespace paged_stream
