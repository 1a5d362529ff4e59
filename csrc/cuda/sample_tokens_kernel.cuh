// Samples one token per row of logits, a thread block per row. The algorithm is that of
// csrc/cpu/kernels/sampling.inl.
//
// Nothing is sorted. The tokens that top_k and top_p keep are bounded below by one logit, which is
// found by bisection over the bits of a float. Each bisection step reads only the tiles of the row
// whose maximum, kept in shared memory, is high enough. Sums are in float64, without atomics, in an
// order that depends on the row alone.
//
// Bytes: the row (4 * vocab) once from memory, then parts of it again from L2, where it stays.
// Time: a pass over the row and some 60 block-wide reductions, a few per cent of a decode step.
// Occupancy: 512 threads and 8.5 KB of shared memory; there are fewer rows than the chip can hold.
#pragma once

#include "elements.cuh"
#include "launch.cuh"
#include "reduce.cuh"
#include "sampling_hash.h"
#include "sampling_parameters.h"

namespace paged_stream {

struct SampleTokensParams {
  const float* logits;  // [rows, vocab]
  int64_t stride;       // elements between rows
  int64_t rows;
  int vocab;
  SamplingParameters sampling;
  int64_t* tokens;  // [rows]
};

constexpr int kSampleThreads = 512;
constexpr int kMaxTiles = 512;

struct SampleShared {
  uint8_t scratch[kReduceScratch];
  double masses[kMaxTiles];  // weight of the tokens above the floor in each tile
  float maxima[kMaxTiles];   // largest logit of each tile, NaN if it contains one
  int ties[kMaxTiles];       // number of tokens at the floor in each tile
};

// Maps floats to integers of the same order, and back.
__device__ __forceinline__ int32_t to_key(float x) {
  const int32_t bits = static_cast<int32_t>(float_bits(x));
  return bits ^ ((bits >> 31) & 0x7fffffff);
}
__device__ __forceinline__ float from_key(int32_t key) {
  return bits_float(static_cast<uint32_t>(key ^ ((key >> 31) & 0x7fffffff)));
}

// Returns the largest x in [low, high] with is_low(x). is_low must hold for low and be monotonic.
template <class IsLow>
__device__ __forceinline__ float bisect(float low, float high, const IsLow& is_low) {
  int64_t first = to_key(low), last = to_key(high);
  while (first < last) {
    const int64_t middle = first + (last - first + 1) / 2;
    if (is_low(from_key(static_cast<int32_t>(middle)))) {
      first = middle;
    } else {
      last = middle - 1;
    }
  }
  return from_key(static_cast<int32_t>(first));
}

// Returns e^x for x <= 0 to about one unit in the last place; 0 below e^-707. Fuses the same
// multiply-adds as the CPU's compiler, so that weights are bit-identical.
__device__ inline double exp_nonpositive(double x) {
  if (!(x >= -707.0)) return 0.0;
  constexpr double kShift = 6755399441055744.0;  // 1.5 * 2^52
  const double shifted = fma(x, 1.4426950408889634, kShift);
  const double n = shifted - kShift;
  const double r = fma(-n, 1.90821492927058770002e-10, fma(-n, 6.93147180369123816490e-01, x));
  double y = 1.0 / 6227020800;
  y = fma(y, r, 1.0 / 479001600);
  y = fma(y, r, 1.0 / 39916800);
  y = fma(y, r, 1.0 / 3628800);
  y = fma(y, r, 1.0 / 362880);
  y = fma(y, r, 1.0 / 40320);
  y = fma(y, r, 1.0 / 5040);
  y = fma(y, r, 1.0 / 720);
  y = fma(y, r, 1.0 / 120);
  y = fma(y, r, 1.0 / 24);
  y = fma(y, r, 1.0 / 6);
  y = fma(y, r, 0.5);
  y = fma(y, r, 1.0);
  y = fma(y, r, 1.0);
  return ldexp(y, static_cast<int>(n));
}

// All threads of the block call every method together, with the same arguments.
template <int Threads>
class TokenPicker {
 public:
  __device__ TokenPicker(const SampleTokensParams& p, int64_t row)
      : shared_(*reinterpret_cast<SampleShared*>(dynamic_shared())),
        logits_(p.logits + row * p.stride),
        vocab_(p.vocab),
        tile_size_(tile_size(p.vocab)),
        num_tiles_((p.vocab + tile_size_ - 1) / tile_size_),
        warp_(static_cast<int>(threadIdx.x) / kWarpSize),
        lane_(static_cast<int>(threadIdx.x) % kWarpSize),
        temperature_(p.sampling.temperature[row]),
        min_p_(p.sampling.min_p[row]),
        top_p_(p.sampling.top_p[row]),
        top_k_(p.sampling.top_k[row]),
        seed_(p.sampling.seeds[row]),
        position_(p.sampling.positions[row]) {}

  // Returns the token, or kNoToken, in thread 0.
  __device__ int pick() {
    find_maxima();
    max_ = max_or_nan() + 0.0f;  // no negative zero
    if (!(max_ > -kInfinity && max_ < kInfinity)) return kNoToken;
    if (temperature_ == 0.0) return argmax();
    inv_temperature_ = 1.0 / temperature_;
    return draw(lowest_kept());
  }

 private:
  static constexpr float kInfinity = __builtin_huge_valf();

  // Returns a multiple of the warp size, large enough that kMaxTiles tiles suffice.
  static __device__ __forceinline__ int tile_size(int vocab) {
    const int least = (vocab - 1) / kMaxTiles + 1;
    return (least + kWarpSize - 1) / kWarpSize * kWarpSize;
  }

  __device__ __forceinline__ float logit(int index) const {
    return index < vocab_ ? logits_[index] : -kInfinity;
  }

  // Calls body(logit, index) for the elements of this warp's tiles whose maximum is at least
  // `floor`, and done(tile) after each of those tiles.
  template <class Body, class Done>
  __device__ __forceinline__ void for_tiles(float floor, const Body& body, const Done& done) const {
    for (int t = warp_; t < num_tiles_; t += Threads / kWarpSize) {
      if (!(shared_.maxima[t] >= floor)) continue;
      for (int i = lane_; i < tile_size_; i += kWarpSize) {
        const int index = t * tile_size_ + i;
        body(logit(index), index);
      }
      done(t);
    }
  }

  __device__ void find_maxima() {
    for (int t = warp_; t < num_tiles_; t += Threads / kWarpSize) {
      float most = -kInfinity;
      bool has_nan = false;
#pragma unroll 4
      for (int i = lane_; i < tile_size_; i += kWarpSize) {
        const float x = logit(t * tile_size_ + i);
        has_nan |= x != x;
        most = x > most ? x : most;
      }
      most = reduce_warp(most, Most());
      has_nan = ballot(has_nan) != 0;
      if (lane_ == 0) shared_.maxima[t] = has_nan ? __builtin_nanf("") : most;
    }
    sync_block();
  }

  // Returns the largest logit, or NaN if any logit is NaN.
  __device__ float max_or_nan() {
    float most = -kInfinity;
    int has_nan = 0;
    for (int t = thread(); t < num_tiles_; t += Threads) {
      const float x = shared_.maxima[t];
      has_nan |= x != x;
      most = x > most ? x : most;
    }
    most = reduce_block(most, -kInfinity, shared_.scratch, Most());
    has_nan = reduce_block(has_nan, 0, shared_.scratch, Most());
    return has_nan ? __builtin_nanf("") : most;
  }

  // Returns the first index of the largest logit.
  __device__ int argmax() {
    const auto first_in = [&](const float* x, int count) {
      int first = INT32_MAX;
      for (int i = thread(); i < count; i += Threads) {
        if (x[i] == max_ && i < first) first = i;
      }
      return reduce_block(first, INT32_MAX, shared_.scratch, Least());
    };
    const int begin = first_in(shared_.maxima, num_tiles_) * tile_size_;
    const int count = vocab_ - begin < tile_size_ ? vocab_ - begin : tile_size_;
    return begin + first_in(logits_ + begin, count);
  }

  // Returns the logit below which min_p and top_k drop every token.
  __device__ float lowest_kept() {
    float floor = -kInfinity;
    const double log_min_p = log(min_p_);
    if (log_min_p > -kInfinity) {
      // Negated, because the bisection finds a largest value and this is the smallest one kept.
      floor = -bisect(-max_, kInfinity, [&](float x) {
        return (-static_cast<double>(x) - max_) * inv_temperature_ >= log_min_p;
      });
    }
    if (top_k_ <= 0 || top_k_ >= vocab_) return floor;
    float low = -kInfinity;
    // top_k tiles hold at least one logit each, so the search need not go below their maxima.
    if (top_k_ <= num_tiles_) {
      low = bisect(low, max_, [&](float x) {
        int count = 0;
        for (int t = thread(); t < num_tiles_; t += Threads) {
          count += shared_.maxima[t] >= x;
        }
        return reduce_block(count, 0, shared_.scratch, Plus()) >= top_k_;
      });
    }
    const float kth = bisect(low, max_, [&](float x) {
      int count = 0;
      for_tiles(x, [&](float y, int) { count += y >= x; }, [](int) {});
      return reduce_block(count, 0, shared_.scratch, Plus()) >= top_k_;
    });
    return kth > floor ? kth : floor;
  }

  __device__ __forceinline__ double weight(float x) const {
    return exp_nonpositive((static_cast<double>(x) - max_) * inv_temperature_);
  }

  // Returns the weight of the tokens at or above `floor`, or with Above only those above it.
  template <bool Above>
  __device__ double mass(float floor) {
    double sum = 0;
    const auto add = [&](float x, int) {
      if (Above ? x > floor : x >= floor) sum += weight(x);
    };
    for_tiles(floor, add, [](int) {});
    return reduce_block(sum, 0.0, shared_.scratch, Plus());
  }

  __device__ int draw(float floor) {
    int num_ties = vocab_;  // tokens at the floor itself that are kept
    if (top_p_ < 1.0) {
      const double target = top_p_ * mass<false>(floor);
      floor = top_p_floor(floor, target);
      num_ties = ties_to_reach(target, mass<true>(floor), weight(floor));
    }
    weigh_tiles(floor);
    return invert(floor, num_ties);
  }

  // Returns the largest logit such that the tokens at or above it weigh at least `target`.
  __device__ float top_p_floor(float floor, double target) {
    const auto reaches_target = [&](float x) { return mass<false>(x) >= target; };
    // Near the top, few tiles need to be read.
    float high = max_;
    double below = temperature_;
    for (float x = high; (x = static_cast<float>(max_ - below)) > floor; below *= 2) {
      if (reaches_target(x)) {
        floor = x;
        break;
      }
      high = x;
    }
    return bisect(floor, high, reaches_target);
  }

  // Returns the fewest ties of weight w, at least 1, that reach `target`; vocab if none do.
  __device__ int ties_to_reach(double target, double above, double w) const {
    const auto reaches = [&](int n) { return above + static_cast<double>(n) * w >= target; };
    if (!reaches(vocab_)) return vocab_;
    int low = 1, high = vocab_;
    while (low < high) {
      const int middle = low + (high - low) / 2;
      if (reaches(middle)) {
        high = middle;
      } else {
        low = middle + 1;
      }
    }
    return low;
  }

  // Sets each tile's weight of tokens above the floor, and its number of tokens at the floor.
  __device__ void weigh_tiles(float floor) {
    for (int t = thread(); t < num_tiles_; t += Threads) {
      shared_.masses[t] = 0;
      shared_.ties[t] = 0;
    }
    sync_block();
    double sum = 0;
    int ties = 0;
    const auto add = [&](float x, int index) {
      if (x > floor) sum += weight(x);
      ties += x == floor && index < vocab_;
    };
    for_tiles(floor, add, [&](int t) {
      sum = reduce_warp(sum, Plus());
      ties = reduce_warp(ties, Plus());
      if (lane_ == 0) {
        shared_.masses[t] = sum;
        shared_.ties[t] = ties;
      }
      sum = 0;
      ties = 0;
    });
    sync_block();
  }

  // Inverts the cumulative distribution of the tokens above `floor` and the first num_ties at it.
  // The lanes of warp 0 walk together in order of token id; the other warps are done.
  __device__ int invert(float floor, int num_ties) {
    if (warp_ != 0) return 0;
    const double w = weight(floor);
    const auto mass_of = [&](int t, int& ties_left, int& kept) {
      kept = shared_.ties[t] < ties_left ? shared_.ties[t] : ties_left;
      ties_left -= kept;
      return shared_.masses[t] + static_cast<double>(kept) * w;
    };
    double total = 0;
    int kept = 0;
    for (int t = 0, ties_left = num_ties; t < num_tiles_; ++t) total += mass_of(t, ties_left, kept);
    // Rounding must not carry the point past the last token with non-zero probability.
    const double below = nextafter(total, 0.0);
    double point = uniform(seed_, position_) * total, sum = 0;
    point = point < below ? point : below;
    for (int t = 0, ties_left = num_ties;; ++t) {
      const double mass = mass_of(t, ties_left, kept);
      if (sum + mass > point || t == num_tiles_ - 1) return walk_tile(t, floor, kept, sum, point);
      sum += mass;
    }
  }

  // Returns the tile's first token whose cumulative weight exceeds the point, or the last one kept.
  __device__ int walk_tile(int t, float floor, int ties, double sum, double point) const {
    int last = t * tile_size_;
    for (int i = 0; i < tile_size_ && sum <= point; i += kWarpSize) {
      const int begin = t * tile_size_ + i;
      const float x = logit(begin + lane_);
      const bool exists = begin + lane_ < vocab_;
      const uint32_t at_floor = ballot(exists && x == floor);
      const int ties_before = count_ones(at_floor & ((1u << lane_) - 1));
      const bool is_kept = exists && (x > floor || (x == floor && ties_before < ties));
      ties -= count_ones(at_floor);
      const double mine = is_kept ? weight(x) : 0.0;
      for (uint32_t some = ballot(mine != 0.0); some != 0 && sum <= point; some &= some - 1) {
        const int source = first_one(some);
        sum += shuffle(mine, source);
        last = begin + source;
      }
    }
    return last;
  }

  __device__ __forceinline__ int thread() const { return static_cast<int>(threadIdx.x); }

  SampleShared& shared_;
  const float* const logits_;
  const int vocab_, tile_size_, num_tiles_, warp_, lane_;
  const double temperature_, min_p_, top_p_;
  const int64_t top_k_, seed_, position_;
  double inv_temperature_ = 0;
  float max_ = 0;
};

// Without the 1, ptxas leaves so few registers that some spill, to have more thread blocks per SM.
template <int Threads>
__global__ void __launch_bounds__(Threads, 1) sample_tokens_kernel(const SampleTokensParams p) {
  const int64_t row = blockIdx.x;
  const int token = TokenPicker<Threads>(p, row).pick();
  if (threadIdx.x == 0) p.tokens[row] = token;
}

template <int Threads = kSampleThreads>
void run_sample_tokens(const SampleTokensParams& p, Stream stream) {
  if (p.rows == 0) return;
  launch(sample_tokens_kernel<Threads>, static_cast<unsigned>(p.rows), Threads,
         sizeof(SampleShared), stream, p);
}

}  // namespace paged_stream
