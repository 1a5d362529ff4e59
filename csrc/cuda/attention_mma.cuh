// Attention of a tile on the tensor cores, for 16-bit queries.
//
// A row is a (token, head of the kv head's group) pair, so the heads that share keys fill the 16
// rows of a product. At the memory wall, this is fastest even for a single row: 16 keys and values
// of 128 dimensions, 8 KiB, take some 560 cycles of one SM's share of an H100's bandwidth. Their 32
// products take 64 cycles of its tensor cores and, with their operands, 56 instructions of one
// warp. Dot products would take 128 multiply-adds, 128 conversions and the shuffles of 16 sums.
//
// Bytes moved: per key and kv head its two rows, once per tile; the tile's queries and output,
// once. Shared memory: Stages steps of keys and values, and the queries twice (for window keys and
// for sink keys).
//   Split (RowWarps 1): 16 rows. The warps divide a step's 64 keys and merge their results at the
//   end. Dim 128: 2 stages of 32 KiB, 74 KiB in all, so an SM of an H100 holds three thread blocks
//   and up to 96 KiB in flight, where latency times bandwidth requires about 20.
//   Chunk (RowWarps 4): 64 rows, 16 per warp. Every warp uses all of a step's keys, so a byte of
//   the cache is used 64 times. Dim 128: 2 stages of 32 KiB and 32 KiB of queries: 2 thread blocks.
// With Dim 256, two warps share 16 rows, and each adds up half of the dimensions of their values.
// Both compute the rows' scores.
#pragma once

#include <cstdint>

#include "attention_output.cuh"
#include "attention_scores.cuh"
#include "key_stream.cuh"

namespace paged_stream {

template <class Q, class C, int Dim, int RowWarps>
class MmaAttention {
 public:
  static constexpr int kRows = 16 * RowWarps;
  static constexpr int kDimWarps = Dim == 256 ? 2 : 1;
  static constexpr int kKeyWarps = kAttentionWarps / kDimWarps / RowWarps;

 private:
  static constexpr bool kIsQuantized = !std::is_same_v<C, Q>;
  static constexpr bool kIsSplit = RowWarps == 1;
  // What fits into kMostSharedBytes, beside the tile's queries.
  static constexpr int kKeys =
      Dim <= 128 ? (kIsQuantized && !kIsSplit ? 32 : 64) : (kIsQuantized && !kIsSplit ? 16 : 32);
  static constexpr int kStages = Dim <= 128 && kIsQuantized && kIsSplit ? 3 : 2;

 public:
  // Thread blocks that an SM of an H100 has to have room for.
  static constexpr int kMinBlocks = Dim <= 128 && !kIsQuantized && kIsSplit ? 3 : 2;

 private:
  using Stream = KeyStream<C, Q, Dim, kKeys, kStages>;
  using Rows = SharedRows<Q, Dim>;
  static constexpr int kQueryBytes = kRows * Rows::kRowBytes;
  static constexpr int kRuleBytes = kRows * sizeof(RowRule);
  // Offsets in the thread block's shared memory.
  static constexpr int kRulesAt = kBlockTileBytes;
  static constexpr int kQueriesAt = kRulesAt + kRuleBytes;
  static constexpr int kStreamAt = kQueriesAt + 2 * kQueryBytes;
  static_assert(kQueriesAt % 128 == 0 && kQueryBytes % 128 == 0);
  static constexpr int kWarpKeys = kKeys / kKeyWarps;
  static constexpr int kKeyTiles = kWarpKeys / 8;
  static constexpr int kDimTiles = Dim / 8 / kDimWarps;
  static_assert(kWarpKeys % 16 == 0);
  // The warps' results for merge_warps overwrite the stages.
  static constexpr int kMergeRowFloats = Dim + 4;
  static constexpr int kMergeBytes = kKeyWarps * 16 * (kMergeRowFloats + 2) * 4;
  static_assert(kKeyWarps == 1 || kMergeBytes <= Stream::kSharedBytes);

 public:
  static constexpr int kSharedBytes = kStreamAt + Stream::kSharedBytes;

  // Processes keys [begin, end), at least one, of the tile's list. Called by all threads.
  static __device__ __forceinline__ void attend(const PagedAttentionArguments& in,
                                                const AttentionTile& tile, int kv_head, int begin,
                                                int end, int split, int num_splits) {
    uint8_t* shared = dynamic_shared();
    if (const int row = thread_index(); row < kRows) {
      shared_rule(row) = RowRule(in, tile, kv_head, row);
    }
    copy_queries<Q, Dim, kRows>(in, tile, kv_head, shared + kQueriesAt);
    uint8_t* memory = shared + kStreamAt;
    Stream stream(in, tile, kv_head, begin, end, memory);
    stream.start();
    MmaAttention warp(in, tile, end);
    for (int step = 0; step < stream.num_steps(); ++step) {
      stream.next(step);
      warp.take(begin + step * kKeys, stream.keys(), stream.values());
      stream.done(step);
    }
    stream.finish();
    warp.add_up();
    if constexpr (kKeyWarps == 1) {
      warp.write(in, tile, kv_head, split, num_splits);
    } else {
      sync_block();
      warp.leave(reinterpret_cast<float*>(memory));
      sync_block();
      merge_warps(in, tile, kv_head, split, num_splits, reinterpret_cast<const float*>(memory));
    }
  }

 private:
  __device__ __forceinline__ MmaAttention(const PagedAttentionArguments& in,
                                          const AttentionTile& tile, int end)
      : rule_(in),
        has_alibi_(in.alibi_slopes != nullptr),
        end_(end),
        num_sinks_(tile.num_sinks),
        all_see_from_(tile.visible_keys(tile.num_rows - 1).window_begin),
        all_see_to_(tile.visible_keys(0).end),
        lane_(thread_index() % kWarpSize),
        row_(thread_index() / kWarpSize % RowWarps * 16),
        dim_(thread_index() / kWarpSize / RowWarps % kDimWarps * (Dim / kDimWarps)),
        key_(thread_index() / kWarpSize / RowWarps / kDimWarps * kWarpKeys) {
    if (all_see_from_ < num_sinks_) all_see_from_ = num_sinks_;
    if (all_see_to_ > end_) all_see_to_ = end_;
  }

  static __device__ __forceinline__ RowRule& shared_rule(int row) {
    return *reinterpret_cast<RowRule*>(dynamic_shared() + kRulesAt + row * sizeof(RowRule));
  }
  // Returns the tile row of this thread in the upper (0) or lower (1) half of the warp's 16.
  __device__ __forceinline__ int row(int half) const { return row_ + lane_ / 4 + half * 8; }

  // Processes a step of kKeys keys; `first` is the index of the step's first key.
  __device__ __forceinline__ void take(int first, int keys, int values) {
    float scores[kKeyTiles][4] = {};
    const int warp_first = first + key_;
    multiply_keys(keys, num_sinks_ - warp_first, scores);
    apply_rules(warp_first, scores);
    weigh(scores);
    add_values(scores, values);
  }

  // Turns products into scores, kHidden for keys that are not visible.
  __device__ __forceinline__ void apply_rules(int warp_first, float (&scores)[kKeyTiles][4]) const {
#pragma unroll
    for (int i = 0; i < kKeyTiles * 4; ++i) scores[i / 4][i % 4] *= rule_.factor;
    if (rule_.cap != 0.0f) {
#pragma unroll
      for (int i = 0; i < kKeyTiles * 4; ++i) {
        scores[i / 4][i % 4] = rule_.capped(scores[i / 4][i % 4]);
      }
    }
    // Rows beyond the tile's num_rows are never written, so their masks do not matter.
    const bool all_see = warp_first >= all_see_from_ && warp_first + kWarpKeys <= all_see_to_;
    if (all_see && !has_alibi_) return;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const RowRule rule = shared_rule(row(half));
#pragma unroll
      for (int n = 0; n < kKeyTiles; ++n) {
#pragma unroll
        for (int i = 2 * half; i < 2 * half + 2; ++i) {
          scores[n][i] = rule(scores[n][i], key_of(warp_first, n, i), num_sinks_, end_);
        }
      }
    }
  }

  __device__ __forceinline__ int key_of(int warp_first, int n, int i) const {
    return warp_first + n * 8 + lane_ % 4 * 2 + i % 2;
  }

  // Multiplies the rows with the warp's keys, of which the first num_sinks, if any, are sink keys.
  // Makes one pass per kind of query that is needed; in it, the other kind's keys are zeros.
  __device__ __forceinline__ void multiply_keys(int keys, int num_sinks,
                                                float (&scores)[kKeyTiles][4]) const {
    const int key = key_ + lane_ / 16 * 8 + lane_ % 8;
    const int keys_at = keys + Rows::offset(key, lane_ / 8 % 2);
#pragma unroll 1
    for (int to_sinks = num_sinks > 0; to_sinks >= (num_sinks >= kWarpKeys); --to_sinks) {
      const int queries_at =
          kQueriesAt + to_sinks * kQueryBytes + Rows::offset(row_ + lane_ % 16, lane_ / 16);
#pragma unroll
      for (int k = 0; k < Dim / 16; ++k) {
        uint32_t a[4];
        load_matrix_x4(a, dynamic_shared() + Rows::further(queries_at, 2 * k));
#pragma unroll
        for (int n = 0; n < kKeyTiles; n += 2) {
          uint32_t b[4];
          load_matrix_x4(
              b, dynamic_shared() + Rows::further(keys_at, 2 * k) + n * 8 * Rows::kRowBytes);
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const bool is_sink = (n + i / 2) * 8 + lane_ / 4 < num_sinks;
            b[i] = is_sink == (to_sinks != 0) ? b[i] : 0;
          }
          mma_16x8x16<Q>(scores[n], a, {b[0], b[1]});
          mma_16x8x16<Q>(scores[n + 1], a, {b[2], b[3]});
        }
      }
    }
  }

  // Turns scores into weights.
  __device__ __forceinline__ void weigh(float (&scores)[kKeyTiles][4]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float largest = kHidden;
#pragma unroll
      for (int n = 0; n < kKeyTiles; ++n) {
        largest = fmaxf(largest, fmaxf(scores[n][2 * half], scores[n][2 * half + 1]));
      }
      largest = fmaxf(largest, shuffle_xor(largest, 1));
      largest = fmaxf(largest, shuffle_xor(largest, 2));
      const float shrink = softmax_[half].raise(largest);
#pragma unroll
      for (int n = 0; n < kDimTiles; ++n) {
        acc_[n][2 * half] *= shrink;
        acc_[n][2 * half + 1] *= shrink;
      }
#pragma unroll
      for (int n = 0; n < kKeyTiles; ++n) {
#pragma unroll
        for (int i = 2 * half; i < 2 * half + 2; ++i) {
          scores[n][i] = softmax_[half].weight(scores[n][i]);
          softmax_[half].sum += scores[n][i];
        }
      }
    }
  }

  __device__ __forceinline__ void add_values(const float (&weights)[kKeyTiles][4], int values) {
    const int values_at =
        values + Rows::offset(key_ + lane_ % 16, lane_ / 16) + dim_ * static_cast<int>(sizeof(Q));
#pragma unroll
    for (int k = 0; k < kKeyTiles; k += 2) {
      // A product's accumulator layout is the next product's operand layout: no shuffle is needed.
      const uint32_t a[4] = {pack_pair<Q>(weights[k][0], weights[k][1]),
                             pack_pair<Q>(weights[k][2], weights[k][3]),
                             pack_pair<Q>(weights[k + 1][0], weights[k + 1][1]),
                             pack_pair<Q>(weights[k + 1][2], weights[k + 1][3])};
#pragma unroll
      for (int n = 0; n < kDimTiles; n += 2) {
        uint32_t b[4];
        load_matrix_x4_transposed(
            b, dynamic_shared() + Rows::further(values_at, n) + k * 8 * Rows::kRowBytes);
        mma_16x8x16<Q>(acc_[n], a, {b[0], b[1]});
        mma_16x8x16<Q>(acc_[n + 1], a, {b[2], b[3]});
      }
    }
  }

  // Adds up the partial sums of a row's four threads.
  __device__ __forceinline__ void add_up() {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float& sum = softmax_[half].sum;
      sum += shuffle_xor(sum, 1);
      sum += shuffle_xor(sum, 2);
    }
  }

  __device__ __forceinline__ void write(const PagedAttentionArguments& in,
                                        const AttentionTile& tile, int kv_head, int split,
                                        int num_splits) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (row(half) >= tile.num_rows) continue;
      const RowWriter<Q> writer(in, tile, kv_head, row(half), split, num_splits);
      const float factor = 1.0f / softmax_[half].sum;
#pragma unroll
      for (int n = 0; n < kDimTiles; ++n) {
        const int dim = dim_ + n * 8 + lane_ % 4 * 2;
        if (dim >= in.head_dim) break;
        writer.write(dim, acc_[n][2 * half], acc_[n][2 * half + 1], factor);
      }
    }
  }

  // Stores the warp's results for merge_warps: 16 rows of accumulators, then their max and sum.
  __device__ __forceinline__ void leave(float* memory) const {
    float* rows = memory + key_ / kWarpKeys * 16 * (kMergeRowFloats + 2);
    float* softmax = rows + 16 * kMergeRowFloats;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int r = row(half);
#pragma unroll
      for (int n = 0; n < kDimTiles; ++n) {
        float* to = rows + r * kMergeRowFloats + dim_ + n * 8 + lane_ % 4 * 2;
        to[0] = acc_[n][2 * half];
        to[1] = acc_[n][2 * half + 1];
      }
      if (lane_ % 4 == 0 && dim_ == 0) {
        softmax[r] = softmax_[half].max;
        softmax[16 + r] = softmax_[half].sum;
      }
    }
  }

  static __device__ __forceinline__ void merge_warps(const PagedAttentionArguments& in,
                                                     const AttentionTile& tile, int kv_head,
                                                     int split, int num_splits,
                                                     const float* memory) {
    const int pairs = in.head_dim / 2;
    for (int item = thread_index(); item < tile.num_rows * pairs; item += kAttentionThreads) {
      const int row = item / pairs, dim = item % pairs * 2;
      const auto rows_of = [&](int warp) { return memory + warp * 16 * (kMergeRowFloats + 2); };
      RunningSoftmax all;
      for (int warp = 0; warp < kKeyWarps; ++warp) {
        all.max = fmaxf(all.max, rows_of(warp)[16 * kMergeRowFloats + row]);
      }
      float first = 0.0f, second = 0.0f;
      for (int warp = 0; warp < kKeyWarps; ++warp) {
        const float* softmax = rows_of(warp) + 16 * kMergeRowFloats + row;
        const float* from = rows_of(warp) + row * kMergeRowFloats + dim;
        const float weight = all.weight(softmax[0]);
        all.sum += weight * softmax[16];
        first += weight * from[0];
        second += weight * from[1];
      }
      const RowWriter<Q> writer(in, tile, kv_head, row, split, num_splits);
      writer.write(dim, first, second, 1.0f / all.sum);
      if (dim == 0) writer.write_softmax(in, all.max, all.sum);
    }
  }

  const ScoreRule rule_;
  const bool has_alibi_;
  const int end_;
  const int num_sinks_;
  int all_see_from_;  // first key visible to all rows
  int all_see_to_;    // end of the keys visible to all rows
  const int lane_;
  const int row_;  // first of the warp's rows
  const int dim_;  // first of the warp's dimensions of values
  const int key_;  // first of the warp's keys in a step
  // [2]: the thread's rows in the upper and in the lower half of the warp's 16.
  RunningSoftmax softmax_[2];
  float acc_[kDimTiles][4] = {};  // in the layout of mma_16x8x16's d
};

template <class Q, class C, int Dim>
using MmaSplit = MmaAttention<Q, C, Dim, 1>;
template <class Q, class C, int Dim>
using MmaChunk = MmaAttention<Q, C, Dim, Dim == 256 ? 2 : 4>;

}  // namespace paged_stream
