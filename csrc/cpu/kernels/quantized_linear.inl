// Quantised rows times a weight in groups of 32, once per instruction set. Included after
// linear_common.inl and the definitions of dot4, load_halves and kQuantizedShape.
//
// Arithmetic within a group is on integers and exact; groups are then added in order, in float32.
// So a row's result is bit-identical whatever rows are computed with it.

template <int W>
PS_INLINE UVec<W> splat_word(const char* p) {
  uint32_t word;
  __builtin_memcpy(&word, p, sizeof(word));
  return UVec<W>{} + word;
}

// Computes a group's integer dot products with `Bytes` bytes of each code of x: dots[b][r][v] is
// for byte b, row r and columns from v * W.
template <GroupFormat Format, int W, int Bytes, int Rows, int V>
PS_INLINE void dot_group(IVec<W> (&dots)[Bytes][Rows][V], const char* codes, const char* x) {
  constexpr GroupLayout kLayout = group_layout(Format);
  constexpr int kLines = kLayout.code_bytes() / 4;
#pragma GCC unroll 8
  for (int line = 0; line < kLines; ++line) {
    UVec<W> words[V];
    for (int v = 0; v < V; ++v) words[v] = load<UVec<W>>(codes + (line * V + v) * 4 * W);
    // A byte of 4-bit codes holds those of k and k + 16.
    for (int half = 0; half < (kLayout.bits == 4 ? 2 : 1); ++half) {
      const char* codes_of_x = x + (line + half * kLines) * 4 * Rows;
      UVec<W> unpacked[V];
      for (int v = 0; v < V; ++v) {
        unpacked[v] = kLayout.bits == 8 ? words[v] : (words[v] >> (4 * half)) & 0x0f0f0f0fu;
      }
      for (int b = 0; b < Bytes; ++b) {
        for (int r = 0; r < Rows; ++r) {
          const UVec<W> input = splat_word<W>(codes_of_x + b * kGroupSize * Rows + 4 * r);
          for (int v = 0; v < V; ++v) dots[b][r][v] = dot4<W>(dots[b][r][v], unpacked[v], input);
        }
      }
    }
  }
}

// Computes dot products with whole codes: 128 times the high bytes plus the low bytes.
template <GroupFormat Format, int W, int Rows, int V>
PS_INLINE void dot_codes(IVec<W> (&dots)[Rows][V], const char* codes, const char* x) {
  if constexpr (Rows * V <= 4) {  // both bytes in one pass if registers suffice
    IVec<W> both[2][Rows][V] = {};
    dot_group<Format, W>(both, codes, x);
    for (int r = 0; r < Rows; ++r) {
      for (int v = 0; v < V; ++v) dots[r][v] = (both[0][r][v] << 7) + both[1][r][v];
    }
  } else {
    IVec<W> one[1][Rows][V] = {};
    dot_group<Format, W>(one, codes, x);
    for (int r = 0; r < Rows; ++r) {
      for (int v = 0; v < V; ++v) one[0][r][v] <<= 7;
    }
    dot_group<Format, W>(one, codes, x + kGroupSize * Rows);
    for (int r = 0; r < Rows; ++r) {
      for (int v = 0; v < V; ++v) dots[r][v] = one[0][r][v];
    }
  }
}

// Adds a group's products to the sums of one panel.
template <GroupFormat Format, int W, int Rows, int Vectors>
PS_INLINE void add_group(Vec<W> (&acc)[Rows][Vectors], int first, const char* group,
                         const char* x) {
  constexpr GroupLayout kLayout = group_layout(Format);
  constexpr int V = kLinearPanel / W, kScaleBytes = 2 * kLinearPanel;
  const char* codes = group + kScaleBytes * (kLayout.has_min ? 2 : 1);
  const char* scales = x + 2 * kGroupSize * Rows;
  const char* corrections = scales + 4 * Rows;
  IVec<W> dots[Rows][V];
  dot_codes<Format, W>(dots, codes, x);
  if constexpr (!kLayout.has_min) {
    for (int r = 0; r < Rows; ++r) {
      const IVec<W> offset = (IVec<W>)splat_word<W>(corrections + 4 * r);
      for (int v = 0; v < V; ++v) dots[r][v] += offset;
    }
  }
  for (int v = 0; v < V; ++v) {
    const Vec<W> scale = load_halves<W>(group + v * 2 * W);
    Vec<W> min{};
    if constexpr (kLayout.has_min) min = load_halves<W>(group + kScaleBytes + v * 2 * W);
    for (int r = 0; r < Rows; ++r) {
      const Vec<W> input_scale = (Vec<W>)splat_word<W>(scales + 4 * r);
      Vec<W>& sum = acc[r][first + v];
      sum += __builtin_convertvector(dots[r][v], Vec<W>) * scale * input_scale;
      if constexpr (kLayout.has_min) sum += (Vec<W>)splat_word<W>(corrections + 4 * r) * min;
    }
  }
}

// Most: the bytes that a single tile prefetches, known at compile time.
template <int64_t Most>
PS_INLINE void fetch_ahead(const char* from, const Span& span) {
  if (span.ahead_bytes == Most) {
    for (int64_t i = 0; i < Most; i += 64) __builtin_prefetch(from + i);
  } else {
    for (int64_t i = 0; i < span.ahead_bytes; i += 64) __builtin_prefetch(from + i);
  }
}

template <GroupFormat Format, int W>
struct QuantizedTile {
  static constexpr int64_t kStep = kGroupSize;
  static constexpr int64_t kStepBytes = group_layout(Format).bytes() * kLinearPanel;
  static constexpr int64_t kSpan = 6;
  static constexpr int64_t kMaxTiles = kTilesPerItem;

  template <int Rows, int Panels>
  static void run(const LinearArgs& a, int64_t row, int64_t panel, const Span& span) {
    constexpr int V = kLinearPanel / W;
    const int64_t panel_bytes = span.num_steps * kStepBytes;
    const char* weight = static_cast<const char*>(a.weight) + panel * panel_bytes;
    const char* x = static_cast<const char*>(a.x) +
                    (row * span.num_steps + span.begin * Rows) * kQuantizedGroupBytes;
    const char* ahead = span.ahead;
    Vec<W> acc[Rows][Panels * V];
    begin_span<W>(acc, span);
    for (int64_t step = span.begin; step < span.end; ++step, x += kQuantizedGroupBytes * Rows) {
      for (int p = 0; p < Panels; ++p) fetch_ahead<kStepBytes>(ahead + p * panel_bytes, span);
#pragma GCC unroll 4
      for (int p = 0; p < Panels; ++p) {
        add_group<Format, W>(acc, p * V, weight + p * panel_bytes + step * kStepBytes, x);
      }
      ahead += span.ahead_bytes;
    }
    end_span<W>(acc, span, a, row, panel);
  }
};

template <GroupFormat Format, int W>
void quantized_linear(const LinearArgs& a) {
  run_tiles<QuantizedTile<Format, W>, kQuantizedShape>(a);
}

constexpr float kMaxCode = 127 * 128;

template <class T, int W>
void quantize_rows(const QuantizeArgs& a) {
  constexpr int kVectors = kGroupSize / W;
  const GroupLayout layout = group_layout(a.format);
  for (int64_t r = 0; r < a.rows; ++r) {
    const T* row = static_cast<const T*>(a.x) + r * a.stride;
    char* out = static_cast<char*>(a.out);
    for (int64_t b = 0; b < a.in_features / kGroupSize; ++b) {
      Vec<W> values[kVectors], largest{}, total{};
      for (int i = 0; i < kVectors; ++i) {
        values[i] = load_row<W>(row + b * kGroupSize + i * W);
        const Vec<W> size = values[i] < 0.0f ? -values[i] : values[i];
        largest = size > largest ? size : largest;
        total += values[i];
      }
      const float max = horizontal_max<W>(largest);
      // Propagates NaN: 0 * total is NaN if the group contains one, and 0 otherwise.
      const float scale = max / kMaxCode + 0.0f * horizontal_sum<W>(total);
      // For a smaller max the inverse would not be finite.
      const Vec<W> inverse = splat<W>(max > 1e-30f ? kMaxCode / max : 0.0f);
      int8_t high[kGroupSize], low[kGroupSize];
      Vec<W> sums{};
      for (int i = 0; i < kVectors; ++i) {
        // Adding 1.5 * 2^23 leaves the nearest integer in the low mantissa bits.
        const Vec<W> shifted = values[i] * inverse + 12582912.0f;
        const IVec<W> code = (IVec<W>)shifted - 0x4b400000;
        sums += shifted - 12582912.0f;
        const IVec<W> upper = (code + 64) >> 7;
        store(high + i * W, __builtin_convertvector(upper, typename VecOf<W>::B));
        store(low + i * W, __builtin_convertvector(code - (upper << 7), typename VecOf<W>::B));
      }
      // A group with a NaN has a scale of NaN, whatever its codes; no integer stands for their sum.
      const float codes = horizontal_sum<W>(sums);
      const int32_t sum = codes == codes ? static_cast<int32_t>(codes) : 0;
      for (int i = 0; i < kGroupSize / 4; ++i) {
        __builtin_memcpy(out + (i * a.rows + r) * 4, high + 4 * i, 4);
        __builtin_memcpy(out + kGroupSize * a.rows + (i * a.rows + r) * 4, low + 4 * i, 4);
      }
      char* scales = out + 2 * kGroupSize * a.rows + 4 * r;
      __builtin_memcpy(scales, &scale, sizeof(scale));
      const float scaled = scale * static_cast<float>(sum);
      const int32_t offset = -layout.zero_point * sum;
      char* correction = scales + 4 * a.rows;
      if (layout.has_min) {
        __builtin_memcpy(correction, &scaled, sizeof(scaled));
      } else {
        __builtin_memcpy(correction, &offset, sizeof(offset));
      }
      out += kQuantizedGroupBytes * a.rows;
    }
  }
}

constexpr QuantizedKernels kQuantized = {
    {quantized_linear<GroupFormat::kQ4_0, kLanes>, quantized_linear<GroupFormat::kQ4_1, kLanes>,
     quantized_linear<GroupFormat::kQ8_0, kLanes>},
    {quantize_rows<float, kLanes>, quantize_rows<bfloat16, kLanes>},
    kQuantizedShape.tall_rows,
};
