// What attention multiplies where there are dot products of bfloat16 pairs, for queries and a cache
// in bfloat16. The weights of the values are rounded to bfloat16 for that. Included after
// attention_common.inl and dot_pairs, which returns sum + the products of each lane's pairs.

// A packed query is a row of pairs in the place of padded_dim numbers, of which it takes half.
template <int W>
void pack_query_pairs(const void* query, int head_dim, float* packed) {
  const auto* row = static_cast<const bfloat16*>(query);
  const RowChunks<W, 0> chunks{head_dim};
  auto* out = reinterpret_cast<bfloat16*>(packed);
  for (int c = 0; c < chunks.count(); ++c, out += 2 * W) {
    const int overlap = c * 2 * W - chunks.start(c);
    __builtin_memset(out, 0, overlap * sizeof(bfloat16));
    __builtin_memcpy(out + overlap, row + c * 2 * W, (2 * W - overlap) * sizeof(bfloat16));
  }
}

// See Widened.
struct Pairs {
  using Element = bfloat16;
  using Word = uint32_t;
  static constexpr int kWordVectors = 1;
  static constexpr int kKeysPerWeight = 2;

  template <int W, class Visit>
  PS_INLINE static void visit_words(const bfloat16* cache, const int64_t* offsets,
                                    const Visit& visit) {
    Vec<W> pairs[W];
    for (int i = 0; i < W; ++i) pairs[i] = load<Vec<W>>(cache + offsets[i]);
    transpose<W>(pairs);
    for (int i = 0; i < W; ++i) visit(i, pairs[i]);
  }

  // Pairs the chunks of two keys. If the last key is alone, its partner is the padding, whose
  // weight is zero.
  template <int W>
  PS_INLINE static void load_values(const bfloat16* cache, const int64_t* offsets, Vec<W>& lo,
                                    Vec<W>& hi) {
    const UVec<W> a = load<UVec<W>>(cache + offsets[0]), b = load<UVec<W>>(cache + offsets[1]);
    lo = (Vec<W>)((a & 0xffffu) | (b << 16));
    hi = (Vec<W>)((a >> 16) | (b & 0xffff0000u));
  }

  template <int W>
  PS_INLINE static Vec<W> add(Vec<W> sum, Vec<W> pairs, Word x) {
    return dot_pairs<W>(sum, UVec<W>{} + x, (UVec<W>)pairs);
  }

  template <int W>
  PS_INLINE static void store_weights(const float* row, int num_keys, Word* words) {
    auto* narrow = reinterpret_cast<bfloat16*>(words);
    for (int i = 0; i < num_keys; i += W) store_row<W>(narrow + i, load<Vec<W>>(row + i));
  }
};
