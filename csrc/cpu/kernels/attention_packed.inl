// Attention of many rows, as in prefill: packs a run's K (transposed) and V, then runs
// register-tiled matrix products on them. See simd.inl for how this file is compiled.

// Packs a run's V into packed[word of weights][chunk lane].
template <int W, int Fixed, class Kind>
void pack_values(const KeyRun& run, RowChunks<W, Fixed> chunks, typename Kind::Word* packed) {
  const auto* v_cache = static_cast<const typename Kind::Element*>(run.v_cache);
  for (int k = 0; k < run.num_keys; k += Kind::kKeysPerWeight, packed += chunks.padded_dim()) {
    for (int c = 0; c < chunks.count(); ++c) {
      Vec<W> lo, hi;
      Kind::template load_values<W>(v_cache + chunks.start(c), run.offsets + k, lo, hi);
      store(packed + c * 2 * W, lo);
      store(packed + c * 2 * W + W, hi);
    }
  }
}

// Computes acc += weights * V for all columns of kRowPadding rows.
template <int W, class Kind>
PS_INLINE void add_packed_values(const typename Kind::Word* weights,
                                 const typename Kind::Word* packed, float* acc, int dim,
                                 int depth) {
  constexpr int R = kRowPadding, kWide = kPanelVectors > 2 ? kPanelVectors : 2;
  int d = 0;
  for (; d + kWide * W <= dim; d += kWide * W) {
    multiply_tile<W, R, kWide, true, Kind>(weights, kRunKeys, packed + d, dim, acc + d, dim, depth);
  }
  for (; d < dim; d += 2 * W) {
    multiply_tile<W, R, 2, true, Kind>(weights, kRunKeys, packed + d, dim, acc + d, dim, depth);
  }
}

template <int W, int Fixed, class Kind>
void attend_packed(const KeyRun& run, int head_dim, const SoftmaxState& state,
                   const AttentionScratch& scratch) {
  using T = typename Kind::Element;
  using Word = typename Kind::Word;
  const RowChunks<W, Fixed> chunks{head_dim};
  const int dim = chunks.padded_dim();
  auto* const keys = reinterpret_cast<Word*>(scratch.packed_k);
  auto* const values = reinterpret_cast<Word*>(scratch.packed_v);
  constexpr int P = kPanelVectors * W;
  const int panel_words = P * chunks.count() * Kind::kWordVectors * W;
  for (int key = 0; key < run.num_keys; key += P) {
    pack_panel<W, Fixed, P, Kind>(run, key, chunks, keys + key / P * panel_words);
  }
  pack_values<W, Fixed, Kind>(run, chunks, values);
  const RunScales<W, T> k_scales(run.k_cache, run, chunks.width());
  const RunScales<W, T> v_scales(run.v_cache, run, chunks.width());
  Word weights[kRowPadding * kRunKeys] = {};
  const int depth = (run.num_keys + Kind::kKeysPerWeight - 1) / Kind::kKeysPerWeight;
  for (int first = 0; first < state.num_rows; first += kRowPadding) {
    float* acc = state.acc + first * dim;
    for (int key = 0; key < run.num_keys; key += P) {
      multiply_panel<W, Fixed, P, kRowPadding, Kind>(
          run.query + first * dim, keys + key / P * panel_words, run.num_keys - key, chunks,
          scratch.scores + key);
    }
    for (int r = 0; r < kRowPadding && first + r < state.num_rows; ++r) {
      float* row = scratch.scores + r * kRunKeys;
      k_scales.apply(row, run);
      const float shrink = softmax_step<W>(row, run, first + r, state);
      if (shrink != 1.0f) scale_row<W>(acc + r * dim, dim, shrink);
      v_scales.apply(row, run);
      Kind::template store_weights<W>(row, run.num_keys, weights + r * kRunKeys);
    }
    add_packed_values<W, Kind>(weights, values, acc, dim, depth);
  }
}
