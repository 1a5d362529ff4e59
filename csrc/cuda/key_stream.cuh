// Streams a tile's keys and values into shared memory in steps: asynchronous copies of whole rows,
// one or two steps ahead of their use. Rows of a quantised cache are copied as they are and
// converted to the kernel's element type when their step begins.
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

// Converts eight elements of a quantised row, times scale, to 16-byte chunks of E. `shared`: where
// they are, at a multiple of 4 bytes for int8 and of 8 for float8.
template <class C, class E>
__device__ __forceinline__ void dequantize_8(const uint8_t* shared, float scale,
                                             Vector16 (&out)[sizeof(E) / 2]) {
  float x[8];
  if constexpr (std::is_same_v<C, int8_t>) {
    const auto* words = reinterpret_cast<const VectorOf<4>*>(shared);
#pragma unroll
    for (int i = 0; i < 8; ++i) x[i] = static_cast<int8_t>(words[i / 4].bytes[i % 4]) * scale;
  } else {
    const auto raw = *reinterpret_cast<const VectorOf<8>*>(shared);
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
  static constexpr int kTileBytes = Keys * Rows::kRowBytes;
  // Rows of a quantised cache start at multiples of 4 bytes (int8, whose rows end with a 4-byte
  // scale) or of 8. Their copies start at the multiple of 16 before, and so do not exceed this.
  static constexpr int kRawRowBytes = Dim + 16;
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
    // All loads precede the first use of one, so that they take the time of one.
    Place places[Stages];
#pragma unroll
    for (int i = 0; i < Stages; ++i) places[i] = look_up(i);
#pragma unroll
    for (int i = 0; i < Stages; ++i) note(i, places[i]);
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
    ahead_ = look_up(step + Stages);
    if constexpr (kIsQuantized) {
      dequantize(step);
      sync_block();
    }
    const uint8_t* current = kIsQuantized ? stages_ + Stages * kStageBytes : stage(step);
    current_ = static_cast<int>(current - dynamic_shared());
  }

  // Ends a step. The load that look_up started has overlapped the step's computation.
  __device__ __forceinline__ void done(int step) { note(step + Stages, ahead_); }

  // Drains the last steps' copy groups, which are empty, so that they do not count with later ones.
  __device__ __forceinline__ void finish() const { wait_copies<0>(); }

  __device__ __forceinline__ int num_steps() const { return (end_ - begin_ + Keys - 1) / Keys; }
  __device__ __forceinline__ int keys() const { return current_; }
  __device__ __forceinline__ int values() const { return current_ + kTileBytes; }

 private:
  // Where a key is.
  struct Place {
    int block = 0;
    int offset = 0;  // in the block
  };

  __device__ __forceinline__ uint8_t* stage(int step) const {
    return stages_ + step % Stages * kStageBytes;
  }

  __device__ __forceinline__ bool has_key(int step) const {
    return thread_index() < Keys && begin_ + step * Keys + thread_index() < end_;
  }

  // Loads the block id of this thread's key of a step, if it has one.
  __device__ __forceinline__ Place look_up(int step) const {
    Place place;
    if (!has_key(step)) return place;
    const int key = begin_ + step * Keys + thread_index();
    place.block = tile_.block_row[tile_.column(key, place.offset)];
    return place;
  }

  // Stores the offset of that key in the caches, or -1 for no key.
  __device__ __forceinline__ void note(int step, const Place& place) {
    if (thread_index() >= Keys) return;
    int64_t where = -1;
    if (has_key(step)) {
      if (static_cast<uint32_t>(place.block) >= static_cast<uint32_t>(in_.num_blocks)) trap();
      const int64_t row = static_cast<int64_t>(kv_head_) * in_.block_size + place.offset;
      where = place.block * in_.block_stride + row * in_.row_bytes;
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
      copy_async_16(shared, in_.k_cache + at, valid ? 16 : 0);
      copy_async_16(shared + kTileBytes, in_.v_cache + at, valid ? 16 : 0);
    }
  }

  // Copies rows with what precedes them up to a multiple of 16 bytes: the end of the row before, or
  // at the start of a cache that is a view, of the same allocation.
  __device__ __forceinline__ void copy_raw(const int64_t* offsets, uint8_t* to) const {
    constexpr int kChunks = kRawRowBytes / 16;
    for (int item = thread_index(); item < Keys * kChunks; item += kAttentionThreads) {
      const int row = item / kChunks, at = item % kChunks * 16;
      uint8_t* shared = to + row * kRawRowBytes + at;
      copy_raw_16(in_.k_cache, offsets[row], at, shared);
      copy_raw_16(in_.v_cache, offsets[row], at, shared + Keys * kRawRowBytes);
    }
  }

  // Copies what there is of 16 bytes, `at` bytes after the start of a row's copy.
  __device__ __forceinline__ void copy_raw_16(const uint8_t* cache, int64_t offset, int at,
                                              uint8_t* shared) const {
    const int before = bytes_before(cache, offset);
    const int left = offset < 0 ? 0 : before + in_.row_bytes - at;
    const int bytes = left < 0 ? 0 : left < 16 ? left : 16;
    const uint8_t* start = cache + (offset < 0 ? 0 : offset) - before;
    copy_async_16(shared, start + (bytes == 0 ? 0 : at), bytes);
  }

  // Returns how many bytes a row's copy has before the row, which is at `offset` of the cache, or
  // nowhere if that is negative.
  static __device__ __forceinline__ int bytes_before(const uint8_t* cache, int64_t offset) {
    return static_cast<int>((reinterpret_cast<uintptr_t>(cache) + (offset < 0 ? 0 : offset)) % 16);
  }

  // Converts a stage's rows, first keys and then values, into the tile's rows.
  __device__ __forceinline__ void dequantize(int step) const {
    const uint8_t* raw = stage(step);
    const int64_t* offsets = offsets_ + step % Stages * Keys;
    uint8_t* tile = stages_ + Stages * kStageBytes;
    constexpr int kEights = Dim / 8;
    for (int item = thread_index(); item < 2 * Keys * kEights; item += kAttentionThreads) {
      const int row = item / kEights, eight = item % kEights;
      const uint8_t* source =
          raw + row * kRawRowBytes +
          bytes_before(row < Keys ? in_.k_cache : in_.v_cache, offsets[row % Keys]);
      Vector16 out[sizeof(E) / 2] = {};
      if (eight * 8 < in_.head_dim) {
        float scale = 1.0f;
        if constexpr (std::is_same_v<C, int8_t>) {
          scale = *reinterpret_cast<const float*>(source + in_.head_dim);
        }
        dequantize_8<C, E>(source + eight * 8, scale, out);
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
  Place ahead_;  // of the key that was looked up last
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
    const int bytes = valid ? 16 : 0;
    copy_async_16(to, static_cast<const Q*>(in.query) + token * in.query_stride + element, bytes);
    copy_async_16(to + MaxRows * Rows::kRowBytes,
                  static_cast<const Q*>(in.sink_query) + token * in.sink_query_stride + element,
                  bytes);
  }
}

}  // namespace paged_stream
