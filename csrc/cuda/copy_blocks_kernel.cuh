// Copies whole KV blocks in every layer, keys and values.
//
// Bytes: 2 * num_layers * n blocks read and as many written. A thread copies 16 bytes if the blocks
// are aligned for it; occupancy is the full 2048 threads of an SM.
#pragma once

#include "elements.cuh"
#include "launch.cuh"

namespace paged_stream {

struct CopyBlocksParams {
  void* data;  // [num_planes, num_blocks, block_bytes]
  int64_t num_planes, num_blocks, block_bytes;
  const int64_t* pairs;  // [num_pairs, 2]
  int64_t num_pairs;
};

constexpr int kCopyThreads = 256;

template <class Word>
__global__ void __launch_bounds__(kCopyThreads) copy_blocks_kernel(const CopyBlocksParams p) {
  const int64_t words = p.block_bytes / static_cast<int64_t>(sizeof(Word));
  const int64_t word = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  const int64_t source = p.pairs[2 * blockIdx.y], target = p.pairs[2 * blockIdx.y + 1];
  // Pairs outside the cache copy nothing.
  const bool exists =
      source >= 0 && source < p.num_blocks && target >= 0 && target < p.num_blocks && word < words;
  if (!exists) return;
  for (int64_t plane = blockIdx.z; plane < p.num_planes; plane += gridDim.z) {
    Word* const at = static_cast<Word*>(p.data) + plane * p.num_blocks * words + word;
    at[target * words] = at[source * words];
  }
}

template <class Word>
void copy_blocks_by(const CopyBlocksParams& all, Stream stream) {
  constexpr int64_t kMostPairs = 65535;
  const unsigned x = ceil_div(all.block_bytes / sizeof(Word), kCopyThreads);
  for (int64_t first = 0; first < all.num_pairs; first += kMostPairs) {
    CopyBlocksParams p = all;
    p.pairs += 2 * first;
    const int64_t pairs = all.num_pairs - first < kMostPairs ? all.num_pairs - first : kMostPairs;
    const int64_t planes = all.num_planes < kMostPairs ? all.num_planes : kMostPairs;
    const dim3 grid(x, static_cast<unsigned>(pairs), static_cast<unsigned>(planes));
    launch(copy_blocks_kernel<Word>, grid, kCopyThreads, 0, stream, p);
  }
}

inline void run_copy_blocks(const CopyBlocksParams& p, Stream stream) {
  if (p.num_planes == 0 || p.block_bytes == 0) return;
  const auto fits = [&](int64_t bytes) {
    return is_aligned(p.data, bytes) && divides(bytes, p.block_bytes);
  };
  if (fits(16)) {
    copy_blocks_by<Vector16>(p, stream);
  } else if (fits(4)) {
    copy_blocks_by<uint32_t>(p, stream);
  } else {
    copy_blocks_by<uint8_t>(p, stream);
  }
}

}  // namespace paged_stream
