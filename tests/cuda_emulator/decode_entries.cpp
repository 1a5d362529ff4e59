// Entries of what runs between decode steps.

#include "advance_decode_kernel.cuh"
#include "driver.h"

using namespace paged_stream;

EMULATED(advance_decode) {
  const DecodeRows rows{
      args.buffer<int64_t>(), args.buffer<int64_t>(), args.buffer<int64_t>(),
      args.buffer<int64_t>(), args.buffer<int64_t>(), args.buffer<int64_t>(),
      args.buffer<int64_t>(), args.buffer<int64_t>(), args.buffer<int64_t>(),
      args.buffer<int64_t>(), args.buffer<int32_t>(), args.buffer<int32_t>(),
      args.buffer<int32_t>(), args.buffer<int64_t>(), args.buffer<int32_t>(),
      args.integer(),         args.integer(),         args.integer(),
      args.integer(),
  };
  run_advance_decode(rows, args.integer(), Stream{});
}
