// Attention of few rows, as in decoding: packs K (transposed) in panels, and reads V in place, each
// element once per four rows. See simd.inl for how this file is compiled.

// Rescales C chunks of R rows' accumulators by `shrink`, then adds weights times V.
template <int W, int Fixed, int R, int C, class Kind>
PS_INLINE void add_values(const KeyRun& run, RowChunks<W, Fixed> chunks, int chunk,
                          const typename Kind::Word* weights, const float* shrink, float* acc) {
  using T = typename Kind::Element;
  const auto* v_cache = static_cast<const T*>(run.v_cache);
  const int dim = chunks.padded_dim();
  Vec<W> sums[R][2 * C];
  for (int r = 0; r < R; ++r) {
    for (int c = 0; c < 2 * C; ++c) {
      sums[r][c] = load<Vec<W>>(acc + r * dim + (2 * chunk + c) * W) * shrink[r];
    }
  }
  const int64_t* offsets = run.offsets;
  const int64_t* const end = offsets + run.num_keys;
  for (; offsets < end; offsets += Kind::kKeysPerWeight, ++weights) {
    for (int i = 0; chunk == 0 && i < Kind::kKeysPerWeight; ++i) {
      prefetch_row<T>(run.v_cache, offsets[i + kPrefetchKeys], chunks.width());
    }
    for (int c = 0; c < C; ++c) {
      Vec<W> lo, hi;
      Kind::template load_values<W>(v_cache + chunks.start(chunk + c), offsets, lo, hi);
      for (int r = 0; r < R; ++r) {
        const auto weight = weights[r * kRunKeys];
        sums[r][2 * c] = Kind::template add<W>(sums[r][2 * c], lo, weight);
        sums[r][2 * c + 1] = Kind::template add<W>(sums[r][2 * c + 1], hi, weight);
      }
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int c = 0; c < 2 * C; ++c) store(acc + r * dim + (2 * chunk + c) * W, sums[r][c]);
  }
}

// Adds a run to the states of R rows, given their products with its keys.
template <int W, int Fixed, int R, class Kind>
void attend_rows(const KeyRun& run, int first_row, RowChunks<W, Fixed> chunks,
                 const SoftmaxState& state, float* scores) {
  using T = typename Kind::Element;
  const RunScales<W, T> k_scales(run.k_cache, run, chunks.width());
  const RunScales<W, T> v_scales(run.v_cache, run, chunks.width());
  float shrink[R];
  typename Kind::Word weights[R * kRunKeys];
  for (int r = 0; r < R; ++r) {
    float* row = scores + r * kRunKeys;
    k_scales.apply(row, run);
    shrink[r] = softmax_step<W>(row, run, first_row + r, state);
    v_scales.apply(row, run);
    Kind::template store_weights<W>(row, run.num_keys, weights + r * kRunKeys);
  }
  float* acc = state.acc + first_row * chunks.padded_dim();
  // Chunks per pass over V: as many as keep R rows' sums in registers.
  constexpr int kPerPass = R <= 2 || kNumVectorRegisters >= 32 ? (R <= 3 ? 4 : 2) : 1;
  constexpr int kChunks = Fixed > 0 && Fixed < kPerPass ? Fixed : kPerPass;
  int chunk = 0;
  for (; chunk + kChunks <= chunks.count(); chunk += kChunks) {
    add_values<W, Fixed, R, kChunks, Kind>(run, chunks, chunk, weights, shrink, acc);
  }
  if constexpr (Fixed == 0) {
    for (; chunk < chunks.count(); ++chunk) {
      add_values<W, Fixed, R, 1, Kind>(run, chunks, chunk, weights, shrink, acc);
    }
  }
}

// Calls visit(R, first) for groups of R rows, where R is an integral constant.
template <class Visit>
PS_INLINE void for_row_groups(int num_rows, const Visit& visit) {
  int first = 0;
  for (; first + 4 <= num_rows; first += 4) visit(std::integral_constant<int, 4>(), first);
  switch (num_rows - first) {
    case 3:
      return visit(std::integral_constant<int, 3>(), first);
    case 2:
      return visit(std::integral_constant<int, 2>(), first);
    case 1:
      return visit(std::integral_constant<int, 1>(), first);
  }
}

template <int W, int Fixed, class Kind>
void attend_direct(const KeyRun& run, int head_dim, const SoftmaxState& state,
                   const AttentionScratch& scratch) {
  constexpr int P = W;
  const RowChunks<W, Fixed> chunks{head_dim};
  const int dim = chunks.padded_dim();
  auto* const panel = reinterpret_cast<typename Kind::Word*>(scratch.packed_k);
  for (int key = 0; key < run.num_keys; key += P) {
    pack_panel<W, Fixed, P, Kind>(run, key, chunks, panel);
    for_row_groups(state.num_rows, [&](auto r, int first) __attribute__((always_inline)) {
      multiply_panel<W, Fixed, P, r(), Kind>(run.query + first * dim, panel, run.num_keys - key,
                                             chunks, scratch.scores + first * kRunKeys + key);
    });
  }
  using T = typename Kind::Element;
  for (int i = 0; i < kPrefetchKeys; ++i)
    prefetch_row<T>(run.v_cache, run.offsets[i], chunks.width());
  for_row_groups(state.num_rows, [&](auto r, int first) __attribute__((always_inline)) {
    attend_rows<W, Fixed, r(), Kind>(run, first, chunks, state, scratch.scores + first * kRunKeys);
  });
}
