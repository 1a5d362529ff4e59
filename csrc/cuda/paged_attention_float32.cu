// The kernels of paged_attention for float32 queries.

#include "attention_launch.cuh"
#include "paged_attention.h"

namespace paged_stream {

void launch_attention_float32(DType cache, const PagedAttentionArguments& in, int num_tokens,
                              Stream stream) {
  launch_attention<float>(cache, in, num_tokens, stream);
}

}  // namespace paged_stream
