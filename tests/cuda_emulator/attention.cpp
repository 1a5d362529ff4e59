// Runs paged_attention as its launcher does, for a selection of dtypes and padded head_dims.

#include <stdexcept>

#include "attention_launch.cuh"
#include "batch_arguments.h"
#include "driver.h"

namespace paged_stream {
namespace {

// Gives the arguments room for partial results.
void add_parts(PagedAttentionArguments& in, int64_t places) {
  const int64_t count = places * in.num_heads * in.max_splits;
  in.part_acc = emulator::scratch(count * in.head_dim);
  in.part_max = emulator::scratch(count);
  in.part_sum = emulator::scratch(count);
}

template <class Q, class C, int Dim>
void run(const PagedAttentionArguments& in, int num_tokens) {
  if constexpr (std::is_same_v<Q, float>) {
    using Attention = FloatAttention<C, Dim>;
    launch_kernels<Attention, Attention, Q>(in, num_tokens, Stream{});
  } else {
    launch_kernels<MmaSplit<Q, C, Dim>, MmaChunk<Q, C, Dim>, Q>(in, num_tokens, Stream{});
  }
}

using Run = void (*)(const PagedAttentionArguments& in, int num_tokens);
struct Kind {
  DType query, cache;
  int dim;
  Run run;
};
const Kind kKinds[] = {
    {DType::kBFloat16, DType::kBFloat16, 64, run<bfloat16, bfloat16, 64>},
    {DType::kBFloat16, DType::kInt8, 64, run<bfloat16, int8_t, 64>},
    {DType::kFloat32, DType::kFloat32, 64, run<float, float, 64>},
#if !defined(PAGED_STREAM_FEW_KINDS)
    {DType::kBFloat16, DType::kBFloat16, 96, run<bfloat16, bfloat16, 96>},
    {DType::kBFloat16, DType::kBFloat16, 128, run<bfloat16, bfloat16, 128>},
    {DType::kBFloat16, DType::kBFloat16, 256, run<bfloat16, bfloat16, 256>},
    {DType::kBFloat16, DType::kInt8, 128, run<bfloat16, int8_t, 128>},
    {DType::kBFloat16, DType::kFloat8, 64, run<bfloat16, float8_e4m3, 64>},
    {DType::kFloat16, DType::kFloat16, 64, run<float16, float16, 64>},
    {DType::kFloat16, DType::kInt8, 64, run<float16, int8_t, 64>},
    {DType::kFloat16, DType::kFloat8, 96, run<float16, float8_e4m3, 96>},
    {DType::kFloat32, DType::kFloat32, 256, run<float, float, 256>},
    {DType::kFloat32, DType::kInt8, 128, run<float, int8_t, 128>},
    {DType::kFloat32, DType::kFloat8, 64, run<float, float8_e4m3, 64>},
    {DType::kBFloat16, DType::kInt8, 256, run<bfloat16, int8_t, 256>},
    {DType::kFloat16, DType::kFloat8, 256, run<float16, float8_e4m3, 256>},
    {DType::kFloat32, DType::kInt8, 256, run<float, int8_t, 256>},
#endif
};

void run_kind(DType query, DType cache, const PagedAttentionArguments& in, int num_tokens) {
  for (const Kind& kind : kKinds) {
    if (kind.query != query || kind.cache != cache || in.head_dim > kind.dim) continue;
    return kind.run(in, num_tokens);
  }
  throw std::runtime_error("this kind is not compiled for the emulator");
}

}  // namespace
}  // namespace paged_stream

EMULATED(paged_attention) {
  using namespace paged_stream;
  PagedAttentionArguments in{};
  const auto query_type = static_cast<DType>(args.integer());
  const auto cache_type = static_cast<DType>(args.integer());
  const int num_tokens = static_cast<int>(args.integer());
  in.query = args.buffer();
  in.query_stride = args.integer();
  in.sink_query = args.buffer();
  in.sink_query_stride = args.integer();
  in.out = args.buffer();
  in.num_heads = static_cast<int>(args.integer());
  in.num_kv_heads = static_cast<int>(args.integer());
  in.group_size = in.num_heads / in.num_kv_heads;
  in.head_dim = static_cast<int>(args.integer());
  in.k_cache = args.buffer<uint8_t>();
  in.v_cache = args.buffer<uint8_t>();
  in.num_blocks = static_cast<int>(args.integer());
  in.block_size = static_cast<int>(args.integer());
  in.row_bytes = static_cast<int>(args.integer());
  in.block_stride = int64_t{in.num_kv_heads} * in.block_size * in.row_bytes;
  in.batch = read_batch<Batch>(args);
  in.num_sequences = static_cast<int>(in.batch.num_sequences);
  in.score_scale = static_cast<float>(args.number());
  in.alibi_slopes = args.buffer<float>();
  in.softcap = static_cast<float>(args.number());
  in.local_window = args.integer();
  in.split_all = num_tokens == in.num_sequences;
  in.max_splits = most_splits(in.batch.table_width, in.block_size, in.group_size);
  add_parts(in, in.num_sequences);
  run_kind(query_type, cache_type, in, num_tokens);
}
