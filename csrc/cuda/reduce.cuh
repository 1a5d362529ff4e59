// Reductions over a thread block, whose result every thread receives. The order of a sum depends on
// the number of threads only.
#pragma once

#include "device.cuh"

namespace paged_stream {

struct Plus {
  template <class T>
  __device__ T operator()(T a, T b) const {
    return a + b;
  }
};
struct Least {
  template <class T>
  __device__ T operator()(T a, T b) const {
    return b < a ? b : a;
  }
};
struct Most {
  template <class T>
  __device__ T operator()(T a, T b) const {
    return b > a ? b : a;
  }
};

template <class T, class Combine>
__device__ __forceinline__ T reduce_warp(T value, Combine combine) {
#pragma unroll
  for (int mask = kWarpSize / 2; mask > 0; mask /= 2) {
    value = combine(value, shuffle_xor(value, mask));
  }
  return value;
}

// scratch: 32 values of 8 bytes in shared memory, free for reuse on return.
template <class T, class Combine>
__device__ __forceinline__ T reduce_block(T value, T identity, void* scratch, Combine combine) {
  T* const of_warps = static_cast<T*>(scratch);
  const unsigned warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  value = reduce_warp(value, combine);
  if (lane == 0) of_warps[warp] = value;
  sync_block();
  value = reduce_warp(lane < blockDim.x / kWarpSize ? of_warps[lane] : identity, combine);
  sync_block();
  return value;
}
constexpr size_t kReduceScratch = 32 * 8;

}  // namespace paged_stream
