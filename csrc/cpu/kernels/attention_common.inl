// Shared by both attention kernels. See simd.inl for how this file is compiled.

// The chunks of a row. Fixed > 0 is their number, known at compile time. If head_dim is not a
// multiple of the chunk size, the last chunk starts earlier so that it ends with the row, and
// overlaps the one before. Packed queries are zero in the overlap, so no element counts twice.
template <int W, int Fixed>
struct RowChunks {
  int head_dim;

  PS_INLINE int count() const {
    if constexpr (Fixed > 0) return Fixed;
    return (head_dim + 2 * W - 1) / (2 * W);
  }
  PS_INLINE int start(int chunk) const {
    const int regular = chunk * 2 * W;
    if constexpr (Fixed > 0) return regular;
    return regular + 2 * W <= head_dim ? regular : head_dim - 2 * W;
  }
  PS_INLINE int width() const {
    if constexpr (Fixed > 0) return Fixed * 2 * W;
    return head_dim;
  }
  PS_INLINE int padded_dim() const { return count() * 2 * W; }
};

template <int W>
int padded_dim(int head_dim) {
  return RowChunks<W, 0>{head_dim}.padded_dim();
}

// Loads a query chunk with its elements in the same lanes as in a cache of T.
template <int W, class Q, class T>
PS_INLINE void load_query_chunk(const Q* p, Vec<W>& lo, Vec<W>& hi) {
  if constexpr (kIsQuantized<T>) {
    lo = load_row<W>(p);
    hi = load_row<W>(p + W);
  } else {
    load_chunk<W>(p, lo, hi);
  }
}
template <int W, class Q, class T>
PS_INLINE void store_output_chunk(Q* p, Vec<W> lo, Vec<W> hi) {
  if constexpr (kIsQuantized<T>) {
    store_row<W>(p, lo);
    store_row<W>(p + W, hi);
  } else {
    store_chunk<W>(p, lo, hi);
  }
}

template <int W, class Q, class T>
void pack_query(const void* query, int head_dim, float* packed) {
  const Q* row = static_cast<const Q*>(query);
  const RowChunks<W, 0> chunks{head_dim};
  Q last[2 * W];
  for (int c = 0; c < chunks.count(); ++c) {
    const Q* source = row + chunks.start(c);
    if (const int overlap = c * 2 * W - chunks.start(c); overlap > 0) {
      __builtin_memset(last, 0, overlap * sizeof(Q));
      __builtin_memcpy(last + overlap, source + overlap, (2 * W - overlap) * sizeof(Q));
      source = last;
    }
    Vec<W> lo, hi;
    load_query_chunk<W, Q, T>(source, lo, hi);
    store(packed + c * 2 * W, lo);
    store(packed + c * 2 * W + W, hi);
  }
}

template <int W, class Q, class T>
void write_output(const float* acc, float sum, int head_dim, void* out) {
  const RowChunks<W, 0> chunks{head_dim};
  const float factor = 1.0f / sum;
  for (int c = 0; c < chunks.count(); ++c) {
    const float* source = acc + c * 2 * W;
    store_output_chunk<W, Q, T>(static_cast<Q*>(out) + chunks.start(c),
                                load<Vec<W>>(source) * factor, load<Vec<W>>(source + W) * factor);
  }
}

// A KV block has too few consecutive rows for the hardware to predict the next block's address, so
// kernels prefetch the row this many keys ahead.
constexpr int kPrefetchKeys = 24;
static_assert(kPrefetchKeys <= kKeyPadding);

// Prefetches `count` elements of a row of a cache.
template <class T>
PS_INLINE void prefetch_row(const void* cache, int64_t begin, int count) {
  const char* bytes = reinterpret_cast<const char*>(static_cast<const T*>(cache) + begin);
  for (int i = 0; i < count * static_cast<int>(sizeof(T)); i += 64) __builtin_prefetch(bytes + i);
}

// What both kernels multiply: words, which are the elements of T in float32. Pairs has the same
// members, see attention_pairs.inl.
template <class T>
struct Widened {
  using Element = T;
  using Word = float;
  static constexpr int kWordVectors = 2;    // per chunk
  static constexpr int kKeysPerWeight = 1;  // per word of weights

  // Transposes the chunks of W keys: calls visit(i, word i of each key) for all words.
  template <int W, class Visit>
  PS_INLINE static void visit_words(const T* cache, const int64_t* offsets, const Visit& visit) {
    if constexpr (kIsQuantized<T>) {
      // Four elements together, which are halfway widened then.
      constexpr int N = W / 2;
      Vec<W> fours[N];
      for (int i = 0; i < N; ++i) fours[i] = join<W>(cache + offsets[i], cache + offsets[i + N]);
      transpose<W, N>(fours);
      for (int i = 0; i < N; ++i) {
        const IVec<W> x = (IVec<W>)fours[i];
        visit(4 * i, __builtin_convertvector((x << 24) >> 24, Vec<W>));
        visit(4 * i + 1, __builtin_convertvector((x << 16) >> 24, Vec<W>));
        visit(4 * i + 2, __builtin_convertvector((x << 8) >> 24, Vec<W>));
        visit(4 * i + 3, __builtin_convertvector(x >> 24, Vec<W>));
      }
    } else if constexpr (sizeof(T) == 2) {
      Vec<W> pairs[W];
      for (int i = 0; i < W; ++i) pairs[i] = load<Vec<W>>(cache + offsets[i]);
      transpose<W>(pairs);
      for (int i = 0; i < W; ++i) {
        visit(i, (Vec<W>)((UVec<W>)pairs[i] << 16));
        visit(W + i, (Vec<W>)((UVec<W>)pairs[i] & 0xffff0000u));
      }
    } else {
      for (int half = 0; half < 2; ++half) {
        Vec<W> lines[W];
        for (int i = 0; i < W; ++i) lines[i] = load<Vec<W>>(cache + offsets[i] + half * W);
        transpose<W>(lines);
        for (int i = 0; i < W; ++i) visit(half * W + i, lines[i]);
      }
    }
  }

  // Loads the chunk of a key's values.
  template <int W>
  PS_INLINE static void load_values(const T* cache, const int64_t* offsets, Vec<W>& lo,
                                    Vec<W>& hi) {
    load_chunk<W>(cache + offsets[0], lo, hi);
  }

  template <int W>
  PS_INLINE static Vec<W> add(Vec<W> sum, Vec<W> words, Word x) {
    return sum + words * x;
  }

  // Writes a row of num_keys weights as words.
  template <int W>
  PS_INLINE static void store_weights(const float* row, int num_keys, Word* words) {
    for (int i = 0; i < num_keys; i += W) store(words + i, load<Vec<W>>(row + i));
  }
};

// C[R, N * W] (+)= A[R, depth] * B[depth, N * W], of words. All are row-major, with lda, ldb and
// ldc elements between rows.
template <int W, int R, int N, bool Accumulate, class Kind>
PS_INLINE void multiply_tile(const typename Kind::Word* a, int64_t lda,
                             const typename Kind::Word* b, int64_t ldb, float* c, int64_t ldc,
                             int64_t depth) {
  Vec<W> sums[R][N];
  for (int r = 0; r < R; ++r) {
    for (int n = 0; n < N; ++n) {
      sums[r][n] = Accumulate ? load<Vec<W>>(c + r * ldc + n * W) : Vec<W>{};
    }
  }
  for (int64_t d = 0; d < depth; ++d) {
    Vec<W> columns[N];
    for (int n = 0; n < N; ++n) columns[n] = load<Vec<W>>(b + d * ldb + n * W);
    for (int r = 0; r < R; ++r) {
      const auto x = a[r * lda + d];
      for (int n = 0; n < N; ++n) sums[r][n] = Kind::template add<W>(sums[r][n], columns[n], x);
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int n = 0; n < N; ++n) store(c + r * ldc + n * W, sums[r][n]);
  }
}

// Packs the keys of a run from `first` on, at most P: panel[word][key].
template <int W, int Fixed, int P, class Kind>
PS_INLINE void pack_panel(const KeyRun& run, int first, RowChunks<W, Fixed> chunks,
                          typename Kind::Word* panel) {
  using T = typename Kind::Element;
  const T* k_cache = static_cast<const T*>(run.k_cache);
  const int end = first + P < run.num_keys ? first + P : run.num_keys;
  for (int key = first; key < end; key += W) {
    const int64_t* offsets = run.offsets + key;
    auto* words = panel + (key - first);
    for (int c = 0; c < chunks.count(); ++c, words += Kind::kWordVectors * W * P) {
      for (int i = 0; i < W; ++i) {
        prefetch_row<T>(run.k_cache, offsets[i + kPrefetchKeys] + chunks.start(c), 2 * W);
      }
      Kind::template visit_words<W>(k_cache + chunks.start(c), offsets,
                                    [words](int i, Vec<W> word) __attribute__((always_inline)) {
                                      store(words + i * P, word);
                                    });
    }
  }
}

// Computes the products of R rows of queries with a panel's keys, of which there are num_keys.
template <int W, int Fixed, int P, int R, class Kind>
PS_INLINE void multiply_panel(const float* query, const typename Kind::Word* panel, int num_keys,
                              RowChunks<W, Fixed> chunks, float* scores) {
  const int depth = chunks.count() * Kind::kWordVectors * W;
  const auto* words = reinterpret_cast<const typename Kind::Word*>(query);
  const auto multiply = [&](auto n) __attribute__((always_inline)) {
    multiply_tile<W, R, n(), false, Kind>(words, chunks.padded_dim(), panel, P, scores, kRunKeys,
                                          depth);
  };
  if (P == W || num_keys > 2 * W) {
    multiply(std::integral_constant<int, P / W>());
  } else if (num_keys > W) {
    multiply(std::integral_constant<int, 2>());
  } else {
    multiply(std::integral_constant<int, 1>());
  }
}

// The scales of a run's keys or values, by which the columns of scores or weights are multiplied.
template <int W, class T>
struct RunScales {
  float factors[kIsQuantized<T> ? kRunKeys : 1];

  PS_INLINE RunScales(const void* cache, const KeyRun& run, int head_dim) {
    for (int k = 0; kIsQuantized<T> && k < padded(run); ++k) {
      factors[k] = row_scale(static_cast<const T*>(cache) + run.offsets[k], head_dim);
    }
  }
  PS_INLINE void apply(float* columns, const KeyRun& run) const {
    for (int k = 0; kIsQuantized<T> && k < padded(run); k += W) {
      store(columns + k, load<Vec<W>>(columns + k) * load<Vec<W>>(factors + k));
    }
  }
  PS_INLINE static int padded(const KeyRun& run) { return (run.num_keys + W - 1) / W * W; }
};

template <int W>
PS_INLINE Vec<W> lane_numbers() {
  Vec<W> v;
  for (int i = 0; i < W; ++i) v[i] = i;
  return v;
}

// Far below any score but finite, so that differences of hidden scores are not NaN.
constexpr float kHidden = -1e30f;

// Applies the softcap to log2-domain scores, up to the next multiple of W keys. With s and c in
// that domain, c * tanh(s / c) is c * (1 - e) / (1 + e), where e = 2^(-2 * s / softcap) and s >= 0.
template <int W>
PS_INLINE void cap_scores(float* scores, int num_keys, float softcap) {
  const float exponent = -2.0f / softcap;
  const float cap = softcap * kLog2E;
  for (int i = 0; i < num_keys; i += W) {
    const Vec<W> s = load<Vec<W>>(scores + i);
    const Vec<W> e = exp2_nonpositive<W>((s < 0.0f ? -s : s) * exponent);
    const Vec<W> capped = (1.0f - e) / (1.0f + e) * cap;
    store(scores + i, s < 0.0f ? -capped : capped);
  }
}

// Adds the ALiBi bias and hides the keys that are not visible to the row.
template <int W>
PS_INLINE void bias_and_mask(float* scores, int num_keys, const RowView& view) {
  const Vec<W> lanes = lane_numbers<W>();
  for (int i = 0; i < num_keys; i += W) {
    const Vec<W> key = lanes + float(i);
    Vec<W> s = load<Vec<W>>(scores + i) + (key - view.distance) * view.slope;
    s = key >= float(view.begin) ? s : splat<W>(kHidden);
    s = key < float(view.end) ? s : splat<W>(kHidden);
    store(scores + i, s);
  }
}

// Turns a row's products with the keys of a run into weights 2^(score - max), including those up to
// the next multiple of W, and updates the row's max and sum. Returns the factor to rescale the
// row's accumulator by: 0 if it came from hidden keys only.
template <int W>
PS_INLINE float softmax_step(float* scores, const KeyRun& run, int row, const SoftmaxState& state) {
  const int num_keys = run.num_keys;
  const RowView& view = run.views[row];
  for (int i = 0; i < num_keys; i += W) store(scores + i, load<Vec<W>>(scores + i) * run.factor);
  if (run.softcap != 0.0f) cap_scores<W>(scores, num_keys, run.softcap);
  const bool sees_all = view.begin <= 0 && view.end >= num_keys && num_keys % W == 0;
  if (!sees_all || run.has_alibi) bias_and_mask<W>(scores, num_keys, view);
  const float row_max = state.max[row];
  Vec<W> max = splat<W>(row_max);
  for (int i = 0; i < num_keys; i += W) {
    const Vec<W> s = load<Vec<W>>(scores + i);
    max = s > max ? s : max;
  }
  const float new_max = horizontal_max<W>(max);
  Vec<W> sum{};
  for (int i = 0; i < num_keys; i += W) {
    const Vec<W> weights = exp2_nonpositive<W>(load<Vec<W>>(scores + i) - new_max);
    store(scores + i, weights);
    sum += weights;
  }
  const float shrink = row_max == new_max ? 1.0f : __builtin_exp2f(row_max - new_max);
  state.sum[row] = state.sum[row] * shrink + horizontal_sum<W>(sum);
  state.max[row] = new_max;
  return shrink;
}

template <int W>
PS_INLINE void scale_row(float* row, int dim, float factor) {
  for (int d = 0; d < dim; d += W) store(row + d, load<Vec<W>>(row + d) * factor);
}

template <int W>
void merge(const SoftmaxState& total, const SoftmaxState& part, int head_dim) {
  const int dim = padded_dim<W>(head_dim);
  for (int row = 0; row < total.num_rows; ++row) {
    const float before = total.max[row], added = part.max[row];
    const float max = added > before ? added : before;
    const float keep = __builtin_exp2f(before - max), take = __builtin_exp2f(added - max);
    float* acc = total.acc + row * dim;
    const float* other = part.acc + row * dim;
    for (int d = 0; d < dim; d += W) {
      store(acc + d, load<Vec<W>>(acc + d) * keep + load<Vec<W>>(other + d) * take);
    }
    total.sum[row] = total.sum[row] * keep + part.sum[row] * take;
    total.max[row] = max;
  }
}
