// Samples a token from a row of logits. Included after sampling_math.inl, once per instruction set.
//
// Nothing is sorted. The tokens that top_k and top_p keep are bounded below by one logit, which is
// found by bisection over the bits of a float: 30 or so steps, each of which reads only the tiles
// whose largest logit is high enough. Sums are in float64, in an order the row alone decides.

// Copies a row's last tile, if it is partial, and fills it up with -inf.
PS_INLINE void copy_tail(const float* logits, int64_t vocab, float* tail) {
  const int64_t size = vocab % kVocabTile;
  for (int64_t i = 0; size != 0 && i < kVocabTile; ++i) {
    tail[i] = i < size ? logits[vocab - size + i] : -__builtin_inff();
  }
}

inline void tile_maxima(const float* logits, int64_t vocab, int64_t begin, int64_t end,
                        float* maxima) {
  float tail[kVocabTile];
  copy_tail(logits, vocab, tail);
  for (int64_t tile = begin; tile < end; ++tile) {
    const bool whole = (tile + 1) * kVocabTile <= vocab;
    maxima[tile] = max_or_nan(whole ? logits + tile * kVocabTile : tail, kVocabTile);
  }
}

// Adds to each lane of `count` its number of elements in x[0, size) that are at least `floor`.
PS_INLINE void count_at_least(const float* x, int64_t size, float floor, IVec<kLanes>& count) {
  for (int64_t i = 0; i < size; i += kLanes) count -= load<Vec<kLanes>>(x + i) >= floor;
}

// Draws from one row; ops.sample_tokens documents which tokens it keeps.
class TokenPicker {
 public:
  explicit TokenPicker(const SampleArgs& args)
      : args_(args), num_tiles_((args.vocab + kVocabTile - 1) / kVocabTile) {
    copy_tail(args.logits, args.vocab, tail_);
  }

  int64_t pick() {
    max_ = max_or_nan(args_.maxima, args_.padded_tiles) + 0.0f;  // no negative zero
    if (!(max_ > -kInfinity && max_ < kInfinity)) return kNoToken;
    if (args_.greedy) return argmax();
    const float floor = lowest_kept();
    activate(floor);
    weigh(floor);
    return draw(floor);
  }

 private:
  static constexpr float kInfinity = __builtin_inff();

  const float* tile(int64_t index) const {
    const bool whole = (index + 1) * kVocabTile <= args_.vocab;
    return whole ? args_.logits + index * kVocabTile : tail_;
  }

  // Returns the first index of the largest logit.
  int64_t argmax() const {
    const int64_t b = find(args_.maxima, max_);
    return b * kVocabTile + find(tile(b), max_);
  }

  static int64_t find(const float* x, float value) {
    int64_t i = 0;
    while (x[i] != value) ++i;
    return i;
  }

  // Returns the logit below which min_p and top_k drop every token.
  float lowest_kept() {
    float floor = -kInfinity;
    if (args_.log_min_p > -kInfinity) {
      // Negated, because the bisection finds a largest value and this is the smallest one kept.
      floor = -bisect(-max_, kInfinity, [&](float x) {
        return (-static_cast<double>(x) - max_) * args_.inv_temperature >= args_.log_min_p;
      });
    }
    if (args_.top_k <= 0 || args_.top_k >= args_.vocab) return floor;
    float low = -kInfinity;
    // top_k tiles hold at least one logit each, so the search need not go below their maxima.
    if (args_.top_k <= num_tiles_) {
      low = bisect(low, max_, [&](float x) {
        IVec<kLanes> count{};
        count_at_least(args_.maxima, args_.padded_tiles, x, count);
        return horizontal_sum<kLanes>(count) >= args_.top_k;
      });
    }
    activate(low);
    const float kth = bisect(low, max_, [&](float x) {
      IVec<kLanes> count{};
      for (int64_t a = 0; a < num_active_; ++a) {
        const int32_t b = args_.tiles[a].index;
        if (args_.maxima[b] >= x) count_at_least(tile(b), kVocabTile, x, count);
      }
      return horizontal_sum<kLanes>(count) >= args_.top_k;
    });
    return kth > floor ? kth : floor;
  }

  void activate(float floor) {
    num_active_ = 0;
    for (int64_t b = 0; b < num_tiles_; ++b) {
      args_.tiles[num_active_].index = static_cast<int32_t>(b);
      num_active_ += args_.maxima[b] >= floor;
    }
  }

  DVec weight(DVec x) const { return exp_nonpositive((x - max_) * args_.inv_temperature); }

  void weigh(float floor) {
    for (int64_t a = 0; a < num_active_; ++a) {
      const float* x = tile(args_.tiles[a].index);
      double* weights = args_.weights + a * kVocabTile;
      for (int i = 0; i < kVocabTile; i += kHalf) {
        const DVec value = load_double(x + i);
        store(weights + i, value >= static_cast<double>(floor) ? weight(value) : DVec{});
      }
    }
  }

  // Adds the weight of the tile's tokens at or above `floor`, or with Above only those above it.
  template <bool Above>
  void add_mass(int64_t active, double floor, DVec (&mass)[2]) const {
    const float* x = tile(args_.tiles[active].index);
    const double* weights = args_.weights + active * kVocabTile;
    for (int i = 0; i < kVocabTile; i += 2 * kHalf) {
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
      if (args_.maxima[args_.tiles[a].index] >= floor) add_mass<Above>(a, floor, sum);
    }
    return horizontal_sum(sum[0] + sum[1]);
  }

  int64_t draw(float floor) {
    int64_t num_ties = INT64_MAX;  // tokens at the floor itself that are kept
    if (args_.top_p < 1.0) {
      const double target = args_.top_p * mass<false>(floor);
      const auto reaches_target = [&](float x) { return mass<false>(x) >= target; };
      // Near the top, few tiles need to be read.
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

  // Inverts the cumulative distribution of the tokens above `floor` and the first num_ties at it.
  int64_t invert(float floor, int64_t num_ties) {
    const double w = weight(DVec{} + floor)[0];
    double total = 0;
    for (int64_t a = 0; a < num_active_; ++a) {
      VocabTile& noted = args_.tiles[a];
      const float* x = tile(noted.index);
      IVec<kLanes> equal{};
      for (int i = 0; i < kVocabTile; i += kLanes) equal -= load<Vec<kLanes>>(x + i) == floor;
      const int64_t ties = horizontal_sum<kLanes>(equal);
      noted.num_ties = ties < num_ties ? ties : num_ties;
      num_ties -= noted.num_ties;
      DVec mass[2] = {};
      add_mass<true>(a, floor, mass);
      noted.mass = horizontal_sum(mass[0] + mass[1]) + static_cast<double>(noted.num_ties) * w;
      total += noted.mass;
    }
    // Rounding must not carry the point past the last token with non-zero probability.
    const double below = __builtin_nextafter(total, 0.0);
    double point = args_.uniform * total, sum = 0;
    point = point < below ? point : below;
    int64_t a = 0;
    while (sum + args_.tiles[a].mass <= point) sum += args_.tiles[a++].mass;
    const float* x = tile(args_.tiles[a].index);
    const double* weights = args_.weights + a * kVocabTile;
    int64_t ties = args_.tiles[a].num_ties, last = 0;
    for (int i = 0; i < kVocabTile && sum <= point; ++i) {
      if (!(x[i] > floor || (x[i] == floor && ties-- > 0)) || weights[i] == 0.0) continue;
      sum += weights[i];
      last = i;
    }
    return args_.tiles[a].index * kVocabTile + last;
  }

  const SampleArgs& args_;
  const int64_t num_tiles_;
  int64_t num_active_ = 0;
  float max_ = 0;
  float tail_[kVocabTile];
};

inline int64_t pick_token(const SampleArgs& args) { return TokenPicker(args).pick(); }
