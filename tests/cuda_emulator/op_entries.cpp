// Entries of the ops that move, rotate, normalise and sample; arguments in the parameters' order.

#include "add_rms_norm_kernel.cuh"
#include "cache_rows_kernel.cuh"
#include "copy_blocks_kernel.cuh"
#include "driver.h"
#include "rotary_table_kernel.cuh"
#include "sample_tokens_kernel.cuh"
#include "silu_and_mul_kernel.cuh"

using namespace paged_stream;
using paged_stream::emulator::Arguments;

namespace {

int small(Arguments& args) { return static_cast<int>(args.integer()); }
DType dtype(Arguments& args) { return static_cast<DType>(args.integer()); }
TokenHeads heads(Arguments& args) {
  void* const data = args.buffer();
  return {data, args.integer()};
}
CacheGeometry geometry(Arguments& args) {
  return {args.integer(), args.integer(), args.integer(), args.integer(), small(args)};
}
RowShape shape(Arguments& args) { return {small(args), small(args), args.integer() != 0}; }
RowSide side(Arguments& args) {
  return {args.buffer(), args.buffer(), args.integer(), args.integer() != 0};
}

}  // namespace

EMULATED(rotary_and_cache) {
  const RotaryAndCacheParams params{
      heads(args),          heads(args),
      heads(args),          heads(args),
      args.buffer(),        args.buffer(),
      geometry(args),       args.buffer<float>(),
      args.buffer<float>(), args.buffer<int64_t>(),
      small(args),          small(args),
      shape(args),          dtype(args),
      dtype(args),
  };
  run_rotary_and_cache(params, Stream{});
}

EMULATED(move_rows) {
  RowSide from = side(args), to = side(args);
  // For an op in place, both sides are the same.
  if (to.key == nullptr) to = from;
  const MoveRowsParams params{
      from,        to,          geometry(args), args.buffer<float>(), args.buffer<int64_t>(),
      small(args), shape(args), dtype(args)};
  run_move_rows(params, Stream{});
}

EMULATED(copy_blocks) {
  run_copy_blocks({args.buffer(), args.integer(), args.integer(), args.integer(),
                   args.buffer<int64_t>(), args.integer()},
                  Stream{});
}

EMULATED(add_rms_norm) {
  run_add_rms_norm({args.buffer(), args.buffer(), args.buffer<float>(), args.buffer(),
                    args.integer(), small(args), static_cast<float>(args.number()), dtype(args)},
                   Stream{});
}

EMULATED(silu_and_mul) {
  run_silu_and_mul({args.buffer(), args.buffer(), args.integer(), args.integer(), dtype(args)},
                   Stream{});
}

EMULATED(rotary_table) {
  run_rotary_table({args.buffer<int64_t>(), args.buffer<double>(), args.number(),
                    args.buffer<float>(), args.integer(), args.integer()},
                   Stream{});
}

// Uses the device's thread blocks, or small ones, which take a fraction of the time here.
EMULATED(sample_tokens) {
  SampleTokensParams params{};
  params.logits = args.buffer<float>();
  params.stride = args.integer();
  params.rows = args.integer();
  params.vocab = small(args);
  params.sampling.temperature = args.buffer<double>();
  params.sampling.min_p = args.buffer<double>();
  params.sampling.top_k = args.buffer<int64_t>();
  params.sampling.top_p = args.buffer<double>();
  params.sampling.seeds = args.buffer<int64_t>();
  params.sampling.positions = args.buffer<int64_t>();
  params.tokens = args.buffer<int64_t>();
  args.integer() != 0 ? run_sample_tokens(params, Stream{})
                      : run_sample_tokens<64>(params, Stream{});
}
