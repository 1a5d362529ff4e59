// Attention of many rows as in attention_packed.inl, for queries and caches in bfloat16, by dot
// products of pairs. The weights of the values are rounded to bfloat16 for that. Included after
// attention_common.inl and dot_pairs, which returns sum + the products of each lane's pairs.

constexpr int kPairPanel = 4 * kLanes;  // keys per panel of packed K
constexpr int kMaxPairs = kMaxRunPacked / 2;

// C[R, N * W] (+)= A[R, depth] * B[depth, N * W] for R = kRowPadding, where an element of A or B is
// a pair. All are row-major, with lda, ldb and ldc elements between rows.
template <int W, int N, bool Accumulate>
PS_INLINE void multiply_pairs(const uint32_t* a, int64_t lda, const uint32_t* b, int64_t ldb,
                              float* c, int64_t ldc, int64_t depth) {
  Vec<W> sums[kRowPadding][N];
  for (int r = 0; r < kRowPadding; ++r) {
    for (int n = 0; n < N; ++n) {
      sums[r][n] = Accumulate ? load<Vec<W>>(c + r * ldc + n * W) : Vec<W>{};
    }
  }
  for (int64_t d = 0; d < depth; ++d) {
    UVec<W> columns[N];
    for (int n = 0; n < N; ++n) columns[n] = load<UVec<W>>(b + d * ldb + n * W);
    for (int r = 0; r < kRowPadding; ++r) {
      const UVec<W> x = UVec<W>{} + a[r * lda + d];
      for (int n = 0; n < N; ++n) sums[r][n] = dot_pairs<W>(sums[r][n], x, columns[n]);
    }
  }
  for (int r = 0; r < kRowPadding; ++r) {
    for (int n = 0; n < N; ++n) store(c + r * ldc + n * W, sums[r][n]);
  }
}

// Packs a run's K into panels of kPairPanel keys: packed[panel][pair of elements][key].
template <int W, int Fixed>
void pack_key_pairs(const KeyRun& run, RowChunks<W, Fixed> chunks, uint32_t* packed) {
  constexpr int P = kPairPanel;
  const auto* k_cache = static_cast<const bfloat16*>(run.k_cache);
  const int depth = chunks.padded_dim() / 2;
  for (int first = 0; first < run.num_keys; first += W) {
    uint32_t* panel = packed + first / P * P * depth + first % P;
    for (int c = 0; c < chunks.count(); ++c) {
      Vec<W> pairs[W];
      for (int i = 0; i < W; ++i) {
        pairs[i] = load<Vec<W>>(k_cache + run.offsets[first + i] + chunks.start(c));
      }
      transpose<W>(pairs);
      for (int i = 0; i < W; ++i) store(panel + (c * W + i) * P, pairs[i]);
    }
  }
}

// Packs a run's V into packed[pair of keys][chunk lane]. If the last key is alone, its partner is
// the padding, whose weight is zero.
template <int W, int Fixed>
void pack_value_pairs(const KeyRun& run, RowChunks<W, Fixed> chunks, uint32_t* packed) {
  const auto* v_cache = static_cast<const bfloat16*>(run.v_cache);
  for (int k = 0; k < run.num_keys; k += 2, packed += chunks.padded_dim()) {
    const bfloat16 *first = v_cache + run.offsets[k], *second = v_cache + run.offsets[k + 1];
    for (int c = 0; c < chunks.count(); ++c) {
      const UVec<W> a = load<UVec<W>>(first + chunks.start(c));
      const UVec<W> b = load<UVec<W>>(second + chunks.start(c));
      store(packed + c * 2 * W, (a & 0xffffu) | (b << 16));
      store(packed + c * 2 * W + W, (a >> 16) | (b & 0xffff0000u));
    }
  }
}

// Narrows rows of packed queries to pairs, which undoes their widening.
template <int W>
PS_INLINE void narrow_queries(const float* query, int64_t size, uint32_t* pairs) {
  for (int64_t i = 0; i < size; i += 2 * W, pairs += W) {
    store(pairs, (load<UVec<W>>(query + i) >> 16) | load<UVec<W>>(query + i + W));
  }
}

// Adds weights times V to the accumulators of kRowPadding rows.
template <int W>
PS_INLINE void add_value_pairs(const uint32_t* weights, const uint32_t* values, float* acc, int dim,
                               int num_pairs) {
  int d = 0;
  for (; d + 4 * W <= dim; d += 4 * W) {
    multiply_pairs<W, 4, true>(weights, kMaxPairs, values + d, dim, acc + d, dim, num_pairs);
  }
  for (; d < dim; d += 2 * W) {
    multiply_pairs<W, 2, true>(weights, kMaxPairs, values + d, dim, acc + d, dim, num_pairs);
  }
}

template <int W, int Fixed>
void attend_pairs(const KeyRun& run, int head_dim, const SoftmaxState& state,
                  const AttentionScratch& scratch) {
  constexpr int P = kPairPanel, kBlock = 96;
  const RowChunks<W, Fixed> chunks{head_dim};
  const int dim = chunks.padded_dim(), depth = dim / 2;
  // Half as long as what they stand for in attend_packed. Queries take the rest.
  auto* const keys = reinterpret_cast<uint32_t*>(scratch.packed_k);
  auto* const values = reinterpret_cast<uint32_t*>(scratch.packed_v);
  uint32_t* const queries = keys + kMaxPairs * dim;
  static_assert(kBlock / 2 <= kMaxPairs && kBlock % kRowPadding == 0);
  uint32_t weights[kRowPadding * kMaxPairs] = {};
  pack_value_pairs<W, Fixed>(run, chunks, values);
  for (int first = 0; first < state.num_rows; first += kRowPadding) {
    if (first % kBlock == 0) {
      // Long before they are read: words are not forwarded from the stores of vectors.
      const int64_t left = padded_rows(state.num_rows) - first;
      narrow_queries<W>(run.query + first * dim, (left < kBlock ? left : kBlock) * dim, queries);
      if (first == 0) pack_key_pairs<W, Fixed>(run, chunks, keys);
    }
    const uint32_t* query = queries + first % kBlock * depth;
    float* scores = scratch.scores;
    for (int key = 0; key < run.num_keys; key += P) {
      multiply_pairs<W, P / W, false>(query, depth, keys + key * depth, P, scores + key,
                                      kMaxRunPacked, depth);
    }
    float* acc = state.acc + first * dim;
    for (int r = 0; r < kRowPadding && first + r < state.num_rows; ++r) {
      float* row = scores + r * kMaxRunPacked;
      const float shrink = softmax_step<W>(row, run, first + r, state);
      if (shrink != 1.0f) scale_row<W>(acc + r * dim, dim, shrink);
      auto* narrow = reinterpret_cast<bfloat16*>(weights + r * kMaxPairs);
      for (int i = 0; i < run.num_keys; i += W) store_row<W>(narrow + i, load<Vec<W>>(row + i));
    }
    add_value_pairs<W>(weights, values, acc, dim, (run.num_keys + 1) / 2);
  }
}
