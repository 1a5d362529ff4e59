// One token from one row of logits, for one instruction set; included after simd.inl.
//
// Nothing is sorted. What top_k and top_p keep is bounded below by one logit, which bisection over
// the bits of a float finds: some 30 steps, each of which reads only the blocks whose largest logit
// is high enough. Sums are in float64, in an order that the row alone decides.

constexpr int kHalf = kLanes / 2;  // float64 lanes of a vector
typedef float HalfVec __attribute__((vector_size(4 * kHalf)));
typedef double DVec __attribute__((vector_size(8 * kHalf)));
typedef int64_t LVec __attribute__((vector_size(8 * kHalf)));

PS_INLINE DVec load_double(const float* p) {
  return __builtin_convertvector(load<HalfVec>(p), DVec);
}

template <int W>
PS_INLINE int32_t horizontal_sum(IVec<W> v) {
  int32_t sum = 0;
  for (int i = 0; i < W; ++i) sum += v[i];
  return sum;
}

PS_INLINE double horizontal_sum(DVec v) {
  double sum = 0;
  for (int i = 0; i < kHalf; ++i) sum += v[i];
  return sum;
}

// e^x for x <= 0 to about one unit in the last place; 0 below e^-707.
PS_INLINE DVec exp_nonpositive(DVec x) {
  const DVec clamped = x < -707.0 ? DVec{} - 707.0 : x;
  // Adding 1.5 * 2^52 leaves the nearest integer in the low mantissa bits.
  const DVec shifted = clamped * 1.4426950408889634 + 6755399441055744.0;
  const DVec n = shifted - 6755399441055744.0;
  const DVec r = (clamped - n * 6.93147180369123816490e-01) - n * 1.90821492927058770002e-10;
  DVec y = DVec{} + 1.0 / 6227020800;
  y = y * r + 1.0 / 479001600;
  y = y * r + 1.0 / 39916800;
  y = y * r + 1.0 / 3628800;
  y = y * r + 1.0 / 362880;
  y = y * r + 1.0 / 40320;
  y = y * r + 1.0 / 5040;
  y = y * r + 1.0 / 720;
  y = y * r + 1.0 / 120;
  y = y * r + 1.0 / 24;
  y = y * r + 1.0 / 6;
  y = y * r + 0.5;
  y = y * r + 1.0;
  y = y * r + 1.0;
  const DVec power = (DVec)((LVec)y + ((LVec)shifted << 52));
  return x < -707.0 ? DVec{} : power;
}

// Floats as integers of the same order, and back.
PS_INLINE int32_t to_key(float x) {
  const int32_t bits = __builtin_bit_cast(int32_t, x);
  return bits ^ ((bits >> 31) & 0x7fffffff);
}
PS_INLINE float from_key(int32_t key) {
  return __builtin_bit_cast(float, key ^ ((key >> 31) & 0x7fffffff));
}

// The largest x in [low, high] that is_low(x) holds for: it holds for low and for all below x.
template <class IsLow>
PS_INLINE float bisect(float low, float high, const IsLow& is_low) {
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

// The largest of `size` floats, a multiple of kLanes; NaN if there is one among them.
PS_INLINE float max_or_nan(const float* x, int64_t size) {
  Vec<kLanes> most = load<Vec<kLanes>>(x);
  IVec<kLanes> nan = most != most;
  for (int64_t i = kLanes; i < size; i += kLanes) {
    const Vec<kLanes> next = load<Vec<kLanes>>(x + i);
    nan |= next != next;
    most = next > most ? next : most;
  }
  return horizontal_sum<kLanes>(nan) != 0 ? __builtin_nanf("") : horizontal_max<kLanes>(most);
}

// The last block of a row, when it is not whole, filled up with -inf.
PS_INLINE void copy_tail(const float* logits, int64_t vocab, float* tail) {
  const int64_t size = vocab % kVocabBlock;
  for (int64_t i = 0; size != 0 && i < kVocabBlock; ++i) {
    tail[i] = i < size ? logits[vocab - size + i] : -__builtin_inff();
  }
}

inline void block_maxima(const float* logits, int64_t vocab, int64_t begin, int64_t end,
                         float* maxima) {
  float tail[kVocabBlock];
  copy_tail(logits, vocab, tail);
  for (int64_t block = begin; block < end; ++block) {
    const bool whole = (block + 1) * kVocabBlock <= vocab;
    maxima[block] = max_or_nan(whole ? logits + block * kVocabBlock : tail, kVocabBlock);
  }
}

// Adds to each lane how many of `size` floats are at least `floor`.
PS_INLINE void count_at_least(const float* x, int64_t size, float floor, IVec<kLanes>& count) {
  for (int64_t i = 0; i < size; i += kLanes) count -= load<Vec<kLanes>>(x + i) >= floor;
}

// Draws from one row; see ops.sample_tokens for what it keeps.
class TokenPicker {
 public:
  explicit TokenPicker(const SampleArgs& args)
      : args_(args), num_blocks_((args.vocab + kVocabBlock - 1) / kVocabBlock) {
    copy_tail(args.logits, args.vocab, tail_);
  }

  int64_t pick() {
    const int64_t best = argmax();
    max_ = args_.logits[best] + 0.0f;  // no negative zero
    if (args_.greedy || !(max_ > -kInfinity && max_ < kInfinity)) return best;
    const float floor = lowest_kept();
    activate(floor);
    weigh(floor);
    return draw(floor);
  }

 private:
  static constexpr float kInfinity = __builtin_inff();

  const float* block(int64_t index) const {
    const bool whole = (index + 1) * kVocabBlock <= args_.vocab;
    return whole ? args_.logits + index * kVocabBlock : tail_;
  }

  // The first index of the largest logit, or of a NaN.
  int64_t argmax() const {
    const float max = max_or_nan(args_.maxima, args_.padded_blocks);
    const int64_t b = find(args_.maxima, max);
    return b * kVocabBlock + find(block(b), max);
  }

  static int64_t find(const float* x, float value) {
    int64_t i = 0;
    while (value == value ? x[i] != value : x[i] == x[i]) ++i;
    return i;
  }

  // The logit below which min_p or top_k drop everything.
  float lowest_kept() {
    float floor = -kInfinity;
    if (args_.log_min_p > -kInfinity) {
      // Negated, so that the bisection, which looks for a largest value, finds the least kept one.
      floor = -bisect(-max_, kInfinity, [&](float x) {
        return (-static_cast<double>(x) - max_) * args_.inv_temperature >= args_.log_min_p;
      });
    }
    if (args_.top_k <= 0 || args_.top_k >= args_.vocab) return floor;
    float low = -kInfinity;
    // As many blocks hold at least one logit each: the search need not go below their maxima.
    if (args_.top_k <= num_blocks_) {
      low = bisect(low, max_, [&](float x) {
        IVec<kLanes> count{};
        count_at_least(args_.maxima, args_.padded_blocks, x, count);
        return horizontal_sum<kLanes>(count) >= args_.top_k;
      });
    }
    activate(low);
    const float kth = bisect(low, max_, [&](float x) {
      IVec<kLanes> count{};
      for (int64_t a = 0; a < num_active_; ++a) {
        const int32_t b = args_.blocks[a].index;
        if (args_.maxima[b] >= x) count_at_least(block(b), kVocabBlock, x, count);
      }
      return horizontal_sum<kLanes>(count) >= args_.top_k;
    });
    return kth > floor ? kth : floor;
  }

  void activate(float floor) {
    num_active_ = 0;
    for (int64_t b = 0; b < num_blocks_; ++b) {
      args_.blocks[num_active_].index = static_cast<int32_t>(b);
      num_active_ += args_.maxima[b] >= floor;
    }
  }

  DVec weight(DVec x) const { return exp_nonpositive((x - max_) * args_.inv_temperature); }

  void weigh(float floor) {
    for (int64_t a = 0; a < num_active_; ++a) {
      const float* x = block(args_.blocks[a].index);
      double* weights = args_.weights + a * kVocabBlock;
      for (int i = 0; i < kVocabBlock; i += kHalf) {
        const DVec value = load_double(x + i);
        store(weights + i, value >= static_cast<double>(floor) ? weight(value) : DVec{});
      }
    }
  }

  // Adds what the block's tokens at `floor` and above weigh, or those above it.
  template <bool Above>
  void add_mass(int64_t active, double floor, DVec (&mass)[2]) const {
    const float* x = block(args_.blocks[active].index);
    const double* weights = args_.weights + active * kVocabBlock;
    for (int i = 0; i < kVocabBlock; i += 2 * kHalf) {
      for (int j = 0; j < 2; ++j) {
        const DVec value = load_double(x + i + j * kHalf);
        const DVec w = load<DVec>(weights + i + j * kHalf);
        if constexpr (Above) {
          mass[j] += value > floor ? w : DVec{};
        } else {
          mass[j] += value >= floor ? w : DVec{};
        }
      }
    }
  }

  template <bool Above>
  double mass(float floor) const {
    DVec sum[2] = {};
    for (int64_t a = 0; a < num_active_; ++a) {
      if (args_.maxima[args_.blocks[a].index] >= floor) add_mass<Above>(a, floor, sum);
    }
    return horizontal_sum(sum[0] + sum[1]);
  }

  int64_t draw(float floor) {
    int64_t num_ties = INT64_MAX;  // of the tokens at the floor itself, those that stay
    if (args_.top_p < 1.0) {
      const double target = args_.top_p * mass<false>(floor);
      const auto reaches_target = [&](float x) { return mass<false>(x) >= target; };
      // Near the top few blocks need be read.
      float high = max_;
      double below = 1.0 / args_.inv_temperature;
      for (float x = high; (x = static_cast<float>(max_ - below)) > floor; below *= 2) {
        if (reaches_target(x)) {
          floor = x;
          break;
        }
        high = x;
      }
      floor = bisect(floor, high, reaches_target);
      const double above = mass<true>(floor), w = weight(DVec{} + floor)[0];
      num_ties = 1;
      while (num_ties < args_.vocab && above + static_cast<double>(num_ties) * w < target) {
        ++num_ties;
      }
    }
    return invert(floor, num_ties);
  }

  // Inverts the cumulative distribution of the tokens above `floor` and the first ones at it.
  int64_t invert(float floor, int64_t num_ties) {
    const double w = weight(DVec{} + floor)[0];
    double total = 0;
    for (int64_t a = 0; a < num_active_; ++a) {
      VocabBlock& block_of = args_.blocks[a];
      const float* x = block(block_of.index);
      IVec<kLanes> equal{};
      for (int i = 0; i < kVocabBlock; i += kLanes) equal -= load<Vec<kLanes>>(x + i) == floor;
      const int64_t ties = horizontal_sum<kLanes>(equal);
      block_of.num_ties = ties < num_ties ? ties : num_ties;
      num_ties -= block_of.num_ties;
      DVec mass[2] = {};
      add_mass<true>(a, floor, mass);
      block_of.mass =
          horizontal_sum(mass[0] + mass[1]) + static_cast<double>(block_of.num_ties) * w;
      total += block_of.mass;
    }
    // Rounding must not carry the point past the last token that has any probability.
    const double below = __builtin_nextafter(total, 0.0);
    double point = args_.uniform * total, sum = 0;
    point = point < below ? point : below;
    int64_t a = 0;
    while (sum + args_.blocks[a].mass <= point) sum += args_.blocks[a++].mass;
    const float* x = block(args_.blocks[a].index);
    const double* weights = args_.weights + a * kVocabBlock;
    int64_t ties = args_.blocks[a].num_ties, last = 0;
    for (int i = 0; i < kVocabBlock && sum <= point; ++i) {
      if (!(x[i] > floor || (x[i] == floor && ties-- > 0)) || weights[i] == 0.0) continue;
      sum += weights[i];
      last = i;
    }
    return args_.blocks[a].index * kVocabBlock + last;
  }

  const SampleArgs& args_;
  const int64_t num_blocks_;
  int64_t num_active_ = 0;
  float max_ = 0;
  float tail_[kVocabBlock];
};

inline int64_t pick_token(const SampleArgs& args) { return TokenPicker(args).pick(); }
