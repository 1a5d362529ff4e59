// The kernels of paged_attention for float16 queries.

#include "attention_launch.cuh"
#include "paged_attention.h"

namespace paged_stream {

void launch_attention_float16(DType cache, const PagedAttentionArguments& in, int num_tokens,
                              Stream stream) {
  launch_attention<float16>(cache, in, num_tokens, stream);
}

}  // namespace paged_stream
