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
void merge(const SoftmaxState& first, int64_t part_stride, int num_parts, int head_dim) {
  const int dim = padded_dim<W>(head_dim);
  for (int row = 0; row < first.num_rows; ++row) {
    float max = first.max[row];
    for (int part = 1; part < num_parts; ++part) {
      const float other = first.max[part * part_stride + row];
      max = other > max ? other : max;
    }
    float* acc = first.acc + row * dim;
    float sum = 0;
    for (int part = 0; part < num_parts; ++part) {
      const int64_t shift = part * part_stride;
      const float weight = __builtin_exp2f(first.max[shift + row] - max);
      sum += weight * first.sum[shift + row];
      for (int d = 0; d < dim; d += W) {
        const Vec<W> added = load<Vec<W>>(acc + shift + d) * weight;
        store(acc + d, part == 0 ? added : load<Vec<W>>(acc + d) + added);
      }
    }
    first.max[row] = max;
    first.sum[row] = sum;
  }
}
