// The launchers of paged_attention, one per query dtype, each in a translation unit of its own.
#pragma once

#include "attention_arguments.h"
#include "launch.cuh"
#include "number_types.h"

namespace paged_stream {

void launch_attention_float32(DType cache, const PagedAttentionArguments& in, int num_tokens,
                              Stream stream);
void launch_attention_bfloat16(DType cache, const PagedAttentionArguments& in, int num_tokens,
                               Stream stream);
void launch_attention_float16(DType cache, const PagedAttentionArguments& in, int num_tokens,
                              Stream stream);

}  // namespace paged_stream
