// Attention of few rows, as in decoding: reads K and V in place, each element once per four rows.
// See simd.inl for how this file is compiled.

// A KV block has too few consecutive rows for the hardware to predict the next block's address, so
// kernels prefetch the row this many keys ahead. Offsets are padded by at least as many.
constexpr int kPrefetchKeys = 32;
static_assert(kPrefetchKeys <= kKeyPadding);

template <class T>
PS_INLINE void prefetch_row(const T* row, int head_dim) {
  const char* bytes = reinterpret_cast<const char*>(row);
  for (int i = 0; i < head_dim * static_cast<int>(sizeof(T)); i += 64) {
    __builtin_prefetch(bytes + i);
  }
}

// Computes the scores of R rows for W keys, four keys at a time to keep R * 4 sums in registers.
template <int W, int Fixed, int R, class T>
PS_INLINE void score_keys(const T* k_cache, const int64_t* offsets, RowChunks<W, Fixed> chunks,
                          const float* query, float* scores, int score_stride) {
  const int dim = chunks.padded_dim();
  Vec<W> groups[R][W / 4];
#pragma GCC unroll 4
  for (int x = 0; x < W / 4; ++x) {
    const T* keys[4];
    for (int i = 0; i < 4; ++i) {
      keys[i] = k_cache + offsets[4 * x + i];
      prefetch_row(k_cache + offsets[4 * x + i + kPrefetchKeys], chunks.width());
    }
    Vec<W> sums[R][4] = {};
    for (int c = 0; c < chunks.count(); ++c) {
      Vec<W> lo[4], hi[4];
      for (int i = 0; i < 4; ++i) load_chunk<W>(keys[i] + chunks.start(c), lo[i], hi[i]);
      for (int r = 0; r < R; ++r) {
        const float* q = query + r * dim + c * 2 * W;
        const Vec<W> q_lo = load<Vec<W>>(q), q_hi = load<Vec<W>>(q + W);
        for (int i = 0; i < 4; ++i) sums[r][i] += q_lo * lo[i];
        for (int i = 0; i < 4; ++i) sums[r][i] += q_hi * hi[i];
      }
    }
    for (int r = 0; r < R; ++r) groups[r][x] = sum_four<W>(sums[r]);
  }
  for (int r = 0; r < R; ++r) store(scores + r * score_stride, sum_groups<W>(groups[r]));
}

// Rescales C chunks of R rows' accumulators by `shrink`, then adds weights times V.
template <int W, int Fixed, int R, int C, class T>
PS_INLINE void add_values(const T* v_cache, const int64_t* offsets, int num_keys,
                          RowChunks<W, Fixed> chunks, int chunk, const float* weights,
                          int weight_stride, const float* shrink, float* acc) {
  const int dim = chunks.padded_dim();
  Vec<W> sums[R][2 * C];
  for (int r = 0; r < R; ++r) {
    for (int c = 0; c < 2 * C; ++c) {
      sums[r][c] = load<Vec<W>>(acc + r * dim + (2 * chunk + c) * W) * shrink[r];
    }
  }
  for (int k = 0; k < num_keys; ++k) {
    const T* value = v_cache + offsets[k];
    prefetch_row(v_cache + offsets[k + kPrefetchKeys], chunks.width());
    for (int c = 0; c < C; ++c) {
      Vec<W> lo, hi;
      load_chunk<W>(value + chunks.start(chunk + c), lo, hi);
      for (int r = 0; r < R; ++r) {
        const float weight = weights[r * weight_stride + k];
        sums[r][2 * c] += lo * weight;
        sums[r][2 * c + 1] += hi * weight;
      }
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int c = 0; c < 2 * C; ++c) store(acc + r * dim + (2 * chunk + c) * W, sums[r][c]);
  }
}

template <int W, int Fixed, int R, class T>
void attend_rows(const KeyRun& run, int first_row, RowChunks<W, Fixed> chunks,
                 const SoftmaxState& state, float* scores) {
  const int dim = chunks.padded_dim();
  const int stride = (run.num_keys + W - 1) / W * W;
  const float* query = run.query + first_row * dim;
  for (int i = 0; i < run.num_keys; i += W) {
    const T* k_cache = static_cast<const T*>(run.k_cache);
    score_keys<W, Fixed, R>(k_cache, run.offsets + i, chunks, query, scores + i, stride);
    scale_columns<W, R>(k_cache, run.offsets + i, chunks.width(), scores + i, stride);
  }
  float shrink[R];
  for (int r = 0; r < R; ++r) {
    shrink[r] = softmax_step<W>(scores + r * stride, run, first_row + r, state);
  }
  float* acc = state.acc + first_row * dim;
  const T* v_cache = static_cast<const T*>(run.v_cache);
  for (int i = 0; kIsQuantized<T> && i < run.num_keys; i += W) {
    scale_columns<W, R>(v_cache, run.offsets + i, chunks.width(), scores + i, stride);
  }
  // Chunks per pass over V: as many as keep R rows' sums in registers.
  constexpr int kPerPass = R <= 2 || kNumVectorRegisters >= 32 ? (R <= 3 ? 4 : 2) : 1;
  constexpr int kChunks = Fixed > 0 && Fixed < kPerPass ? Fixed : kPerPass;
  int chunk = 0;
  for (; chunk + kChunks <= chunks.count(); chunk += kChunks) {
    add_values<W, Fixed, R, kChunks>(v_cache, run.offsets, run.num_keys, chunks, chunk, scores,
                                     stride, shrink, acc);
  }
  if constexpr (Fixed == 0) {
    for (; chunk < chunks.count(); ++chunk) {
      add_values<W, Fixed, R, 1>(v_cache, run.offsets, run.num_keys, chunks, chunk, scores, stride,
                                 shrink, acc);
    }
  }
}

template <int W, int Fixed, class T>
void attend_direct(const KeyRun& run, int head_dim, const SoftmaxState& state,
                   const AttentionScratch& scratch) {
  const RowChunks<W, Fixed> chunks{head_dim};
  int row = 0;
  for (; row + 4 <= state.num_rows; row += 4) {
    attend_rows<W, Fixed, 4, T>(run, row, chunks, state, scratch.scores);
  }
  switch (state.num_rows - row) {
    case 3:
      return attend_rows<W, Fixed, 3, T>(run, row, chunks, state, scratch.scores);
    case 2:
      return attend_rows<W, Fixed, 2, T>(run, row, chunks, state, scratch.scores);
    case 1:
      return attend_rows<W, Fixed, 1, T>(run, row, chunks, state, scratch.scores);
  }
}
