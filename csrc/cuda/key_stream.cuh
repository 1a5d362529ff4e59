// Streams a tile's keys and values into shared memory in steps: asynchronous copies of whole rows,
// several steps ahead of their use. Rows of a quantised cache are copied as they are and converted
// to the kernel's element type when their step begins.
//
// Keys outside the tile's list are not read; their rows are zeros, because a weight of 0 times a
// NaN would still be NaN.
#pragma once

#include <type_traits>

#include "attention_tile.h"
#include "cache_layout.h"
#include "device.cuh"

namespace paged_stream {

constexpr int kAttentionThreads = 128;
constexpr int kAttentionWarps = kAttentionThreads / kWarpSize;

__device__ __forceinline__ int thread_index() { return static_cast<int>(threadIdx.x); }

// Rows of Dim elements in shared memory, at a multiple of 128 bytes, laid out to avoid bank
// conflicts. With 2-byte elements, a row's index is XORed into its chunk indices, so that the
// 16-byte chunks that load_matrix_x4 reads from eight rows fall into different banks. With floats,
// 16 bytes of padding per row do the same.
template <class E, int Dim>
struct SharedRows {
  static constexpr int kChunkElements = 16 / sizeof(E);
  static constexpr int kChunks = Dim / kChunkElements;
  static constexpr bool kSwizzled = sizeof(E) == 2;
  static constexpr int kRowBytes = Dim * sizeof(E) + (kSwizzled ? 0 : 16);
  // The swizzle permutes chunks within groups of this size.
  static constexpr int kExchanged = kChunks % 8 == 0 ? 8 : 4;
  static_assert(kChunks % kExchanged == 0 && kRowBytes % (kExchanged * 16) == (kSwizzled ? 0 : 16));

  static __device__ __forceinline__ int offset(int row, int chunk) {
    if constexpr (kSwizzled) chunk ^= kExchanged == 8 ? row & 7 : row >> 1 & 3;
    return row * kRowBytes + chunk * 16;
  }
  // Returns the offset `chunks` chunks, an even number, after the one of a row's chunk 0 or 1.
  static __device__ __forceinline__ int further(int offset, int chunks) {
    return (offset ^ chunks % kExchanged * 16) + chunks / kExchanged * kExchanged * 16;
  }
};

// Converts eight elements of a quantised row, times scale, to 16-byte chunks of E.
template <class C, class E>
__device__ __forceinline__ void dequantize_8(VectorOf<8> raw, float scale,
                                             Vector16 (&out)[sizeof(E) / 2]) {
  float x[8];
  if constexpr (std::is_same_v<C, int8_t>) {
#pragma unroll
    for (int i = 0; i < 8; ++i) x[i] = static_cast<int8_t>(raw.bytes[i]) * scale;
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint32_t pair = to_float16_pair(static_cast<uint16_t>(
          raw.bytes[2 * i] | static_cast<uint32_t>(raw.bytes[2 * i + 1]) << 8));
      x[2 * i] = to_float(float16{static_cast<uint16_t>(pair & 0xffff)});
      x[2 * i + 1] = to_float(float16{static_cast<uint16_t>(pair >> 16)});
    }
  }
  if constexpr (std::is_same_v<E, float>) {
#pragma unroll
    for (int i = 0; i < 8; ++i) out[i / 4].words[i % 4] = float_bits(x[i]);
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) out[0].words[i] = pack_pair<E>(x[2 * i], x[2 * i + 1]);
  }
}

// C: element type of the cache. E: element type in shared memory. Steps of Keys keys, of which
// Stages - 1 are in flight.
template <class C, class E, int Dim, int Keys, int Stages>
class KeyStream {
 public:
  using Rows = SharedRows<E, Dim>;
  static constexpr bool kIsQuantized = !std::is_same_v<C, E>;
  // Alignment of the cache's rows; an int8 row ends with its 4-byte scale.
  static constexpr int kCopyBytes = !kIsQuantized ? 16 : std::is_same_v<C, int8_t> ? 4 : 8;
  static constexpr int kTileBytes = Keys * Rows::kRowBytes;
  static constexpr int kRawRowBytes = Dim + 8;
  static constexpr int kStageBytes = 2 * (kIsQuantized ? Keys * kRawRowBytes : kTileBytes);
  static constexpr int kOffsetBytes = Stages * Keys * 8;
  static constexpr int kSharedBytes =
      kOffsetBytes + Stages * kStageBytes + (kIsQuantized ? 2 * kTileBytes : 0);

  __device__ __forceinline__ KeyStream(const PagedAttentionArguments& in, const AttentionTile& tile,
                                       int kv_head, int begin, int end, uint8_t* shared)
      : in_(in),
        tile_(tile),
        kv_head_(kv_head),
        begin_(begin),
        end_(end),
        offsets_(reinterpret_cast<int64_t*>(shared)),
        stages_(shared + kOffsetBytes) {
    static_assert(Keys <= kAttentionThreads);
    static_assert(kOffsetBytes % 128 == 0 && kStageBytes % 128 == 0);
  }

  // Starts the first steps. No thread may still be using the shared memory.
  __device__ __forceinline__ void start() {
    for (int i = 0; i < Stages; ++i) {
      look_up(i);
      note(i);
    }
    sync_block();
    for (int i = 0; i < Stages - 1; ++i) copy(i);
  }

  // Waits for a step; steps must be consecutive. All threads may then read the rows at keys() and
  // values(), offsets in the thread block's shared memory, until the next call.
  __device__ __forceinline__ void next(int step) {
    wait_copies<Stages - 2>();
    sync_block();
    // This refills the stage that all threads finished with before the barrier.
    copy(step + Stages - 1);
    look_up(step + Stages);
    if constexpr (kIsQuantized) {
      dequantize(step);
      sync_block();
    }
    const uint8_t* current = kIsQuantized ? stages_ + Stages * kStageBytes : stage(step);
    current_ = static_cast<int>(current - dynamic_shared());
  }

  // Ends a step. The load that look_up started has overlapped the step's computation.
  __device__ __forceinline__ void done(int step) { note(step + Stages); }

  // Drains the last steps' copy groups, which are empty, so that they do not count with later ones.
  __device__ __forceinline__ void finish() const { wait_copies<0>(); }

  __device__ __forceinline__ int num_steps() const { return (end_ - begin_ + Keys - 1) / Keys; }
  __device__ __forceinline__ int keys() const { return current_; }
  __device__ __forceinline__ int values() const { return current_ + kTileBytes; }

 private:
  __device__ __forceinline__ uint8_t* stage(int step) const {
    return stages_ + step % Stages * kStageBytes;
  }

  __device__ __forceinline__ bool has_key(int step) const {
    return thread_index() < Keys && begin_ + step * Keys + thread_index() < end_;
  }

  // Loads the block id of this thread's key of a step.
  __device__ __forceinline__ void look_up(int step) {
    if (!has_key(step)) return;
    const int key = begin_ + step * Keys + thread_index();
    block_ = tile_.block_row[tile_.column(key, offset_in_block_)];
  }

  // Stores the offset of that key in the caches, or -1 for no key.
  __device__ __forceinline__ void note(int step) {
    if (thread_index() >= Keys) return;
    int64_t where = -1;
    if (has_key(step)) {
      if (static_cast<uint32_t>(block_) >= static_cast<uint32_t>(in_.num_blocks)) trap();
      const int64_t row = static_cast<int64_t>(kv_head_) * in_.block_size + offset_in_block_;
      where = block_ * in_.block_stride + row * in_.row_bytes;
    }
    offsets_[step % Stages * Keys + thread_index()] = where;
  }

  __device__ __forceinline__ void copy(int step) {
    if (step < num_steps()) {
      const int64_t* offsets = offsets_ + step % Stages * Keys;
      if constexpr (kIsQuantized) {
        copy_raw(offsets, stage(step));
      } else {
        copy_rows(offsets, stage(step));
      }
    }
    commit_copies();
  }

  __device__ __forceinline__ void copy_rows(const int64_t* offsets, uint8_t* to) const {
    constexpr int kChunks = Rows::kChunks, kItems = Keys * kChunks / kAttentionThreads;
    static_assert(Keys * kChunks % kAttentionThreads == 0);
    // All loads precede the first copy, because the compiler moves none above it.
    int64_t from[kItems];
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      from[i] = offsets[(i * kAttentionThreads + thread_index()) / kChunks];
    }
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      const int item = i * kAttentionThreads + thread_index();
      const int row = item / kChunks, chunk = item % kChunks;
      const bool valid = from[i] >= 0 && chunk * 16 < in_.row_bytes;
      const int64_t at = valid ? from[i] + chunk * 16 : 0;
      uint8_t* shared = to + Rows::offset(row, chunk);
      copy_async_16(shared, in_.k_cache + at, valid);
      copy_async_16(shared + kTileBytes, in_.v_cache + at, valid);
    }
  }

  // One warp per row.
  __device__ __forceinline__ void copy_raw(const int64_t* offsets, uint8_t* to) const {
    const int warp = thread_index() / kWarpSize, lane = thread_index() % kWarpSize;
    for (int row = warp; row < Keys; row += kAttentionWarps) {
      const bool valid = offsets[row] >= 0;
      const int64_t from = valid ? offsets[row] : 0;
      uint8_t* shared = to + row * kRawRowBytes;
      for (int i = lane * kCopyBytes; i < in_.row_bytes; i += kWarpSize * kCopyBytes) {
        copy_async<kCopyBytes>(shared + i, in_.k_cache + from + i, valid);
        copy_async<kCopyBytes>(shared + i + Keys * kRawRowBytes, in_.v_cache + from + i, valid);
      }
    }
  }

  // Converts a stage's rows, first keys and then values, into the tile's rows.
  __device__ __forceinline__ void dequantize(int step) const {
    const uint8_t* raw = stage(step);
    uint8_t* tile = stages_ + Stages * kStageBytes;
    constexpr int kEights = Dim / 8;
    for (int item = thread_index(); item < 2 * Keys * kEights; item += kAttentionThreads) {
      const int row = item / kEights, eight = item % kEights;
      const uint8_t* source = raw + row * kRawRowBytes;
      Vector16 out[sizeof(E) / 2] = {};
      if (eight * 8 < in_.head_dim) {
        float scale = 1.0f;
        if constexpr (std::is_same_v<C, int8_t>) {
          scale = *reinterpret_cast<const float*>(source + in_.head_dim);
        }
        dequantize_8<C, E>(*reinterpret_cast<const VectorOf<8>*>(source + eight * 8), scale, out);
      }
      uint8_t* half = tile + row / Keys * kTileBytes;
#pragma unroll
      for (int i = 0; i < static_cast<int>(sizeof(E) / 2); ++i) {
        const int chunk = eight * static_cast<int>(sizeof(E) / 2) + i;
        *reinterpret_cast<Vector16*>(half + Rows::offset(row % Keys, chunk)) = out[i];
      }
    }
  }

  const PagedAttentionArguments& in_;
  const AttentionTile& tile_;
  const int kv_head_;
  const int begin_;
  const int end_;
  int64_t* const offsets_;
  uint8_t* const stages_;
  int current_ = 0;
  int block_ = 0;  // of the key that was looked up
  int offset_in_block_ = 0;
};

// The tile is kept at the start of the thread block's shared memory.
constexpr int kBlockTileBytes = 256;
static_assert(sizeof(AttentionTile) <= kBlockTileBytes);
__device__ __forceinline__ AttentionTile& shared_tile() {
  return *reinterpret_cast<AttentionTile*>(dynamic_shared());
}

// Copies a tile's rows of query, followed by those of sink_query; rows that the tile does not have
// become zeros. The copies belong to the caller's next group.
template <class Q, int Dim, int MaxRows>
__device__ __forceinline__ void copy_queries(const PagedAttentionArguments& in,
                                             const AttentionTile& tile, int kv_head,
                                             uint8_t* shared) {
  using Rows = SharedRows<Q, Dim>;
  for (int item = thread_index(); item < MaxRows * Rows::kChunks; item += kAttentionThreads) {
    const int row = item / Rows::kChunks, chunk = item % Rows::kChunks;
    const bool valid = row < tile.num_rows && chunk * Rows::kChunkElements < in.head_dim;
    const int64_t token = valid ? tile.token(row) : 0;
    const int64_t head = valid ? kv_head * in.group_size + tile.head_in_group(row) : 0;
    const int64_t element = valid ? head * in.head_dim + chunk * Rows::kChunkElements : 0;
    uint8_t* to = shared + Rows::offset(row, chunk);
    copy_async_16(to, static_cast<const Q*>(in.query) + token * in.query_stride + element, valid);
    copy_async_16(to + MaxRows * Rows::kRowBytes,
                  static_cast<const Q*>(in.sink_query) + token * in.sink_query_stride + element,
                  valid);
  }
}

}  // namespace paged_stream
