// Attention of a tile in float32 throughout, for float32 queries. Without tensor cores the result
// is exact to float32, so it can serve as the reference on the device.
//
// A warp handles every fourth row of the tile. For the scores, a lane takes one of a step's 32
// keys, or with Dim 256 half the dimensions of one of 16 keys; for the values, two of every 64
// dimensions. Bytes moved per key and kv head: its two rows, once per tile. Dim 128: two stages of
// 33 KiB, 17 KiB of queries: two thread blocks per H100 SM.
#pragma once

#include <cstdint>

#include "attention_output.cuh"
#include "attention_scores.cuh"
#include "key_stream.cuh"

namespace paged_stream {

template <class C, int Dim>
class FloatAttention {
 public:
  // What fits into kMostSharedBytes.
  static constexpr int kRows = Dim == 256 ? 8 : 16;
  static constexpr int kKeys = Dim == 256 ? 16 : 32;
  static constexpr int kMinBlocks = 2;  // thread blocks that an SM of an H100 has to have room for

 private:
  using Stream = KeyStream<C, float, Dim, kKeys, 2>;
  using Rows = SharedRows<float, Dim>;
  static constexpr int kQueryBytes = kRows * Rows::kRowBytes;
  static constexpr int kWarpRows = kRows / kAttentionWarps;
  static constexpr int kLanePairs = Dim / 64;
  static constexpr int kWeightBytes = kAttentionWarps * kKeys * 4;
  static constexpr int kKeyLanes = kWarpSize / kKeys;  // lanes that share a key

 public:
  static constexpr int kSharedBytes =
      kBlockTileBytes + kWeightBytes + 2 * kQueryBytes + Stream::kSharedBytes;

  // Processes keys [begin, end), at least one, of the tile's list. Called by all threads.
  static __device__ __forceinline__ void attend(const PagedAttentionArguments& in,
                                                const AttentionTile& tile, int kv_head, int begin,
                                                int end, int split, int num_splits) {
    uint8_t* queries = dynamic_shared() + kBlockTileBytes + kWeightBytes;
    copy_queries<float, Dim, kRows>(in, tile, kv_head, queries);
    Stream stream(in, tile, kv_head, begin, end, queries + 2 * kQueryBytes);
    stream.start();
    FloatAttention warp(in, tile, kv_head, end);
    for (int step = 0; step < stream.num_steps(); ++step) {
      stream.next(step);
#pragma unroll
      for (int r = 0; r < kWarpRows; ++r) {
        warp.take(r, begin + step * kKeys, queries, dynamic_shared() + stream.keys(),
                  dynamic_shared() + stream.values());
      }
      stream.done(step);
    }
    stream.finish();
#pragma unroll
    for (int r = 0; r < kWarpRows; ++r) warp.write(r, split, num_splits);
  }

 private:
  __device__ __forceinline__ FloatAttention(const PagedAttentionArguments& in,
                                            const AttentionTile& tile, int kv_head, int end)
      : in_(in),
        tile_(tile),
        kv_head_(kv_head),
        end_(end),
        lane_(thread_index() % kWarpSize),
        warp_(thread_index() / kWarpSize),
        weights_(reinterpret_cast<float*>(dynamic_shared() + kBlockTileBytes) + warp_ * kKeys) {}

  __device__ __forceinline__ int row(int r) const { return r * kAttentionWarps + warp_; }

  // Processes the warp's row r for a step of keys; `first` is the index of the step's first key.
  __device__ __forceinline__ void take(int r, int first, const uint8_t* queries,
                                       const uint8_t* keys, const uint8_t* values) {
    if (row(r) >= tile_.num_rows) return;
    const int key = first + lane_ % kKeys, part = lane_ / kKeys * (Dim / kKeyLanes) * 4;
    const int to_sinks = key < tile_.num_sinks ? kQueryBytes : 0;
    float product = multiply(queries + to_sinks + Rows::offset(row(r), 0) + part,
                             keys + Rows::offset(lane_ % kKeys, 0) + part);
    if constexpr (kKeyLanes == 2) product += shuffle_xor(product, kKeys);
    const RowRule rule(in_, tile_, kv_head_, row(r));
    const ScoreRule layer(in_);
    float score = product * layer.factor;
    if (layer.cap != 0.0f) score = layer.capped(score);
    score = rule(score, key, tile_.num_sinks, end_);

    float largest = score;
    for (int mask = kKeys / 2; mask > 0; mask /= 2) {
      largest = fmaxf(largest, shuffle_xor(largest, mask));
    }
    RunningSoftmax& softmax = softmax_[r];
    const float shrink = softmax.raise(largest);
    const float weight = softmax.weight(score);
    softmax.sum += weight;
    sync_warp();
    if (lane_ < kKeys) weights_[lane_] = weight;
    sync_warp();
    add_values(acc_[r], shrink, values);
  }

  static __device__ __forceinline__ float multiply(const uint8_t* query, const uint8_t* key) {
    const float* q = reinterpret_cast<const float*>(query);
    const float* k = reinterpret_cast<const float*>(key);
    float sums[4] = {};
#pragma unroll 8
    for (int d = 0; d < Dim / kKeyLanes; d += 4) {
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[i] += q[d + i] * k[d + i];
    }
    return (sums[0] + sums[1]) + (sums[2] + sums[3]);
  }

  __device__ __forceinline__ void add_values(float (&acc)[2 * kLanePairs], float shrink,
                                             const uint8_t* values) const {
#pragma unroll
    for (float& sum : acc) sum *= shrink;
#pragma unroll 8
    for (int key = 0; key < kKeys; ++key) {
      const float* value = reinterpret_cast<const float*>(values + Rows::offset(key, 0));
#pragma unroll
      for (int i = 0; i < 2 * kLanePairs; ++i) {
        acc[i] += weights_[key] * value[i / 2 * 64 + 2 * lane_ + i % 2];
      }
    }
  }

  __device__ __forceinline__ void write(int r, int split, int num_splits) {
    if (row(r) >= tile_.num_rows) return;
    float sum = softmax_[r].sum;
    for (int mask = kKeys / 2; mask > 0; mask /= 2) sum += shuffle_xor(sum, mask);
    const float factor = 1.0f / sum;
    const RowWriter<float> writer(in_, tile_, kv_head_, row(r), split, num_splits);
#pragma unroll
    for (int i = 0; i < kLanePairs; ++i) {
      const int dim = i * 64 + 2 * lane_;
      if (dim < in_.head_dim) writer.write(dim, acc_[r][2 * i], acc_[r][2 * i + 1], factor);
    }
    if (lane_ == 0) writer.write_softmax(in_, softmax_[r].max, sum);
  }

  const PagedAttentionArguments& in_;
  const AttentionTile& tile_;
  const int kv_head_;
  const int end_;
  const int lane_;
  const int warp_;
  float* const weights_;  // [kKeys], weights of a step's keys for the warp's current row
  RunningSoftmax softmax_[kWarpRows];
  float acc_[kWarpRows][2 * kLanePairs] = {};  // dimensions 64 * i + 2 * lane and the next
};

}  // namespace paged_stream
