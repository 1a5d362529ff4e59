// Attention of many rows, as in prefill: packs a run's K (transposed) and V as float32, then runs
// register-tiled matrix products on them. See simd.inl for how this file is compiled.

constexpr int kPanel = kPanelVectors * kLanes;  // keys per panel of packed K

// C[R, N * W] (+)= A[R, depth] * B[depth, N * W] for R = kRowPadding. All are row-major, with lda,
// ldb and ldc elements between rows.
template <int W, int N, bool Accumulate>
PS_INLINE void multiply_tile(const float* a, int64_t lda, const float* b, int64_t ldb, float* c,
                             int64_t ldc, int64_t depth) {
  Vec<W> sums[kRowPadding][N];
  for (int r = 0; r < kRowPadding; ++r) {
    for (int n = 0; n < N; ++n) {
      sums[r][n] = Accumulate ? load<Vec<W>>(c + r * ldc + n * W) : Vec<W>{};
    }
  }
  for (int64_t d = 0; d < depth; ++d) {
    Vec<W> columns[N];
    for (int n = 0; n < N; ++n) columns[n] = load<Vec<W>>(b + d * ldb + n * W);
    for (int r = 0; r < kRowPadding; ++r) {
      const float x = a[r * lda + d];
      for (int n = 0; n < N; ++n) sums[r][n] += columns[n] * x;
    }
  }
  for (int r = 0; r < kRowPadding; ++r) {
    for (int n = 0; n < N; ++n) store(c + r * ldc + n * W, sums[r][n]);
  }
}

// Packs a run's K into panels of P keys: packed[panel][chunk lane][key].
template <int W, int Fixed, int P, class T>
void pack_keys(const KeyRun& run, RowChunks<W, Fixed> chunks, float* packed) {
  const T* k_cache = static_cast<const T*>(run.k_cache);
  const int dim = chunks.padded_dim();
  const int num_keys = (run.num_keys + P - 1) / P * P;
  for (int first = 0; first < num_keys; first += W) {
    const int64_t* offsets = run.offsets + first;
    float* panel = packed + first / P * P * dim + first % P;
    for (int c = 0; c < chunks.count(); ++c) {
      Vec<W> lo[W], hi[W];
      for (int i = 0; i < W; ++i) {
        load_scaled_chunk<W>(k_cache + offsets[i], chunks.start(c), chunks.width(), lo[i], hi[i]);
      }
      transpose<W>(lo);
      transpose<W>(hi);
      float* rows = panel + c * 2 * W * P;
      for (int i = 0; i < W; ++i) store(rows + i * P, lo[i]);
      for (int i = 0; i < W; ++i) store(rows + (W + i) * P, hi[i]);
    }
  }
}

template <int W, int Fixed, class T>
void pack_values(const KeyRun& run, RowChunks<W, Fixed> chunks, float* packed) {
  const T* v_cache = static_cast<const T*>(run.v_cache);
  const int dim = chunks.padded_dim();
  for (int k = 0; k < run.num_keys; ++k) {
    const T* value = v_cache + run.offsets[k];
    for (int c = 0; c < chunks.count(); ++c) {
      Vec<W> lo, hi;
      load_scaled_chunk<W>(value, chunks.start(c), chunks.width(), lo, hi);
      store(packed + k * dim + c * 2 * W, lo);
      store(packed + k * dim + c * 2 * W + W, hi);
    }
  }
}

// Computes acc += weights * V for all columns of kRowPadding rows.
template <int W>
PS_INLINE void add_packed_values(const float* weights, const float* packed, float* acc, int dim,
                                 int num_keys) {
  constexpr int kWide = kPanelVectors > 2 ? kPanelVectors : 2;
  int d = 0;
  for (; d + kWide * W <= dim; d += kWide * W) {
    multiply_tile<W, kWide, true>(weights, kMaxRunPacked, packed + d, dim, acc + d, dim, num_keys);
  }
  for (; d < dim; d += 2 * W) {
    multiply_tile<W, 2, true>(weights, kMaxRunPacked, packed + d, dim, acc + d, dim, num_keys);
  }
}

template <int W, int Fixed, class T>
void attend_packed(const KeyRun& run, int head_dim, const SoftmaxState& state,
                   const AttentionScratch& scratch) {
  constexpr int P = kPanelVectors * W;
  const RowChunks<W, Fixed> chunks{head_dim};
  const int dim = chunks.padded_dim();
  pack_keys<W, Fixed, P, T>(run, chunks, scratch.packed_k);
  pack_values<W, Fixed, T>(run, chunks, scratch.packed_v);
  for (int first = 0; first < state.num_rows; first += kRowPadding) {
    float* scores = scratch.scores;
    for (int key = 0; key < run.num_keys; key += P) {
      multiply_tile<W, kPanelVectors, false>(run.query + first * dim, dim,
                                             scratch.packed_k + key * dim, P, scores + key,
                                             kMaxRunPacked, dim);
    }
    float* acc = state.acc + first * dim;
    for (int r = 0; r < kRowPadding && first + r < state.num_rows; ++r) {
      const float shrink = softmax_step<W>(scores + r * kMaxRunPacked, run, first + r, state);
      if (shrink != 1.0f) scale_row<W>(acc + r * dim, dim, shrink);
    }
    add_packed_values<W>(scores, scratch.packed_v, acc, dim, run.num_keys);
  }
}
