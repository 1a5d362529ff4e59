// Quantised rows times a weight in groups of 32, once per instruction set. Included after
// linear_common.inl and the definitions of dot4, load_halves, look_up and kQuantizedShape.
//
// Arithmetic within a span of a group is on integers and exact; spans are then added in order, in
// float32. So a row's result is bit-identical whatever rows are computed with it.

template <int W>
PS_INLINE UVec<W> splat_word(const char* p) {
  uint32_t word;
  __builtin_memcpy(&word, p, sizeof(word));
  return UVec<W>{} + word;
}

template <int W>
PS_INLINE UVec<W> load_line(const char* lines, int index, int v) {
  return load<UVec<W>>(lines + 4 * (index * kLinearPanel + v * W));
}

// Loads quad `Quad` of a group's codes; columns from v * W.
template <GroupFormat Format, int W, int Quad>
PS_INLINE UVec<W> load_quad(const char* lines, int v) {
  constexpr GroupLayout kLayout = group_layout(Format);
  if constexpr (kLayout.bits == 8) {
    return load_line<W>(lines, Quad, v);
  } else if constexpr (kLayout.bits >= 4) {
    UVec<W> codes = (load_line<W>(lines, Quad % 4, v) >> (4 * (Quad / 4))) & 0x0f0f0f0fu;
    if constexpr (kLayout.bits == 5) {
      codes |= ((load_line<W>(lines, 4, v) >> Quad) & 0x01010101u) << 4;
    }
    if constexpr (kLayout.bits == 6) {
      codes |= ((load_line<W>(lines, 4 + Quad / 4, v) >> (2 * (Quad % 4))) & 0x03030303u) << 4;
    }
    if constexpr (kLayout.has_table) return look_up<W>(codes);
    return codes;
  } else {
    UVec<W> codes = (load_line<W>(lines, Quad / 4, v) >> (2 * (Quad % 4))) & 0x03030303u;
    if constexpr (kLayout.bits == 3) {
      codes |= ((load_line<W>(lines, 2, v) >> Quad) & 0x01010101u) << 2;
    }
    return codes;
  }
}

// Adds the products of one quad with `Bytes` bytes of each code of x: dots[b][r][v] is for byte b,
// row r and columns from v * W.
template <GroupFormat Format, int Quad, int W, int Bytes, int Rows, int V>
PS_INLINE void dot_quad(IVec<W> (&dots)[Bytes][Rows][V], const char* lines, const char* x) {
  UVec<W> codes[V];
  for (int v = 0; v < V; ++v) codes[v] = load_quad<Format, W, Quad>(lines, v);
  for (int b = 0; b < Bytes; ++b) {
    for (int r = 0; r < Rows; ++r) {
      const UVec<W> input = splat_word<W>(x + (b * kGroupSize + 4 * Quad) * Rows + 4 * r);
      for (int v = 0; v < V; ++v) dots[b][r][v] = dot4<W>(dots[b][r][v], codes[v], input);
    }
  }
}

// The quads of one span of a group. Halves of a byte of codes are used one after the other.
template <GroupFormat Format, int Sub, int W, int Bytes, int Rows, int V>
PS_INLINE void dot_span(IVec<W> (&dots)[Bytes][Rows][V], const char* lines, const char* x) {
  if constexpr (group_layout(Format).subs() == 2) {
    dot_quad<Format, 4 * Sub, W>(dots, lines, x);
    dot_quad<Format, 4 * Sub + 1, W>(dots, lines, x);
    dot_quad<Format, 4 * Sub + 2, W>(dots, lines, x);
    dot_quad<Format, 4 * Sub + 3, W>(dots, lines, x);
  } else {
    dot_quad<Format, 0, W>(dots, lines, x);
    dot_quad<Format, 4, W>(dots, lines, x);
    dot_quad<Format, 1, W>(dots, lines, x);
    dot_quad<Format, 5, W>(dots, lines, x);
    dot_quad<Format, 2, W>(dots, lines, x);
    dot_quad<Format, 6, W>(dots, lines, x);
    dot_quad<Format, 3, W>(dots, lines, x);
    dot_quad<Format, 7, W>(dots, lines, x);
  }
}

// Computes dot products with whole codes: 128 times the high bytes plus the low bytes.
template <GroupFormat Format, int Sub, int W, int Rows, int V>
PS_INLINE void dot_codes(IVec<W> (&dots)[Rows][V], const char* lines, const char* x) {
  if constexpr (Rows * V <= 4) {  // both bytes in one pass if registers suffice
    IVec<W> both[2][Rows][V] = {};
    dot_span<Format, Sub, W>(both, lines, x);
    for (int r = 0; r < Rows; ++r) {
      for (int v = 0; v < V; ++v) dots[r][v] = (both[0][r][v] << 7) + both[1][r][v];
    }
  } else {
    IVec<W> one[1][Rows][V] = {};
    dot_span<Format, Sub, W>(one, lines, x);
    for (int r = 0; r < Rows; ++r) {
      for (int v = 0; v < V; ++v) one[0][r][v] <<= 7;
    }
    dot_span<Format, Sub, W>(one, lines, x + kGroupSize * Rows);
    for (int r = 0; r < Rows; ++r) {
      for (int v = 0; v < V; ++v) dots[r][v] = one[0][r][v];
    }
  }
}

// Loads the scales of W columns' weights in a span, and minus their mins.
// step: float16 numbers of the columns. group: bytes of the columns.
template <GroupFormat Format, int Sub, int W>
PS_INLINE void load_scales(const char* step, const char* group, Vec<W>& scale, Vec<W>& minus_min) {
  constexpr GroupLayout kLayout = group_layout(Format);
  constexpr MinKind kMin = kLayout.min;
  const auto* bytes = reinterpret_cast<const int8_t*>(group);
  constexpr int kMinBytesAt = kLayout.scale_bytes * kLinearPanel, kScalesAt = Sub * kLinearPanel;
  scale = load_halves<W>(step);
  minus_min = Vec<W>{};
  if constexpr (kMin == MinKind::kMinHalf) minus_min = load_halves<W>(step + 2 * kLinearPanel);
  if constexpr (kMin == MinKind::kMinByte) {
    minus_min = -load_halves<W>(step + 2 * kLinearPanel) * widen_bytes<W>(bytes + kMinBytesAt);
  }
  if constexpr (kMin == MinKind::kZeroByte) {
    minus_min = -scale * widen_bytes<W>(bytes + kMinBytesAt);
  }
  if constexpr (kMin == MinKind::kMinNibble) {
    const IVec<W> both = __builtin_convertvector(widen_bytes<W>(bytes + kScalesAt), IVec<W>);
    scale *= __builtin_convertvector(both & 15, Vec<W>);
    minus_min = -load_halves<W>(step + 2 * kLinearPanel) *
                __builtin_convertvector((both >> 4) & 15, Vec<W>);
  } else if constexpr (kLayout.scale_bytes > 0) {
    scale *= widen_bytes<W>(bytes + kScalesAt);
  }
}

// Adds the products of a group's span to the sums of one panel.
template <GroupFormat Format, int Sub, int W, int Rows, int Vectors>
PS_INLINE void add_span(Vec<W> (&acc)[Rows][Vectors], int first, const char* step,
                        const char* group, const char* x) {
  constexpr GroupLayout kLayout = group_layout(Format);
  constexpr int V = kLinearPanel / W;
  const char* lines = group + (kLayout.scale_bytes + kLayout.min_bytes()) * kLinearPanel;
  const char* scales = x + 2 * kGroupSize * Rows;
  const char* corrections = scales + 4 * Rows * (1 + Sub);
  IVec<W> dots[Rows][V];
  dot_codes<Format, Sub, W>(dots, lines, x);
  if constexpr (!kLayout.has_min()) {
    for (int r = 0; r < Rows; ++r) {
      const IVec<W> offset = (IVec<W>)splat_word<W>(corrections + 4 * r);
      for (int v = 0; v < V; ++v) dots[r][v] += offset;
    }
  }
  for (int v = 0; v < V; ++v) {
    Vec<W> scale, minus_min;
    load_scales<Format, Sub, W>(step + v * 2 * W, group + v * W, scale, minus_min);
    for (int r = 0; r < Rows; ++r) {
      const Vec<W> input_scale = (Vec<W>)splat_word<W>(scales + 4 * r);
      Vec<W>& sum = acc[r][first + v];
      sum += __builtin_convertvector(dots[r][v], Vec<W>) * scale * input_scale;
      if constexpr (kLayout.has_min()) {
        sum += (Vec<W>)splat_word<W>(corrections + 4 * r) * minus_min;
      }
    }
  }
}

template <GroupFormat Format, int W, int Rows, int Vectors>
PS_INLINE void add_group(Vec<W> (&acc)[Rows][Vectors], int first, const char* step,
                         const char* group, const char* x) {
  add_span<Format, 0, W>(acc, first, step, group, x);
  if constexpr (group_layout(Format).subs() == 2) {
    add_span<Format, 1, W>(acc, first, step, group, x);
  }
}

// Most: the bytes that a single tile prefetches, known at compile time.
template <int64_t Most>
PS_INLINE void fetch_ahead(const char* from, int64_t bytes) {
  if (bytes == Most) {
    for (int64_t i = 0; i < Most; i += 64) __builtin_prefetch(from + i);
  } else {
    for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(from + i);
  }
}

template <GroupFormat Format, int W>
struct QuantizedTile {
  static constexpr GroupLayout kLayout = group_layout(Format);
  static constexpr int64_t kStep = kLayout.step_size();
  static constexpr int64_t kStepBytes = kLayout.step_bytes() * kLinearPanel;
  static constexpr int64_t kSpan = kLayout.groups == 1 ? 6 : 1;
  static constexpr int64_t kMaxTiles = kTilesPerItem;

  template <int Rows, int Panels>
  static void run(const LinearArgs& a, int64_t row, int64_t panel, const Span& span) {
    constexpr int V = kLinearPanel / W, kGroups = kLayout.groups;
    constexpr int64_t kGroupBytes = kLayout.group_bytes() * kLinearPanel;
    constexpr int64_t kInputBytes = kLayout.quantized_bytes() * Rows;
    const int64_t panel_bytes = span.num_steps * kStepBytes;
    const char* weight = static_cast<const char*>(a.weight) + panel * panel_bytes;
    const char* x = static_cast<const char*>(a.x) +
                    row * span.num_steps * kGroups * kLayout.quantized_bytes() +
                    span.begin * kGroups * kInputBytes;
    const char* ahead = span.ahead;
    const int64_t group_ahead = span.ahead_bytes / kGroups;
    Vec<W> acc[Rows][Panels * V];
    begin_span<W>(acc, span);
    for (int64_t step = span.begin; step < span.end; ++step) {
      const char* here = weight + step * kStepBytes;
      for (int g = 0; g < kGroups; ++g, x += kInputBytes) {
        for (int p = 0; p < Panels; ++p) {
          fetch_ahead<kStepBytes / kGroups>(ahead + g * group_ahead + p * panel_bytes, group_ahead);
        }
#pragma GCC unroll 4
        for (int p = 0; p < Panels; ++p) {
          const char* at = here + p * panel_bytes;
          add_group<Format, W>(acc, p * V, at,
                               at + 2 * kLayout.halves() * kLinearPanel + g * kGroupBytes, x);
        }
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
  const int subs = layout.subs();
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
      Vec<W> sums[2] = {};  // of the first codes and of the others
      for (int i = 0; i < kVectors; ++i) {
        // Adding 1.5 * 2^23 leaves the nearest integer in the low mantissa bits.
        const Vec<W> shifted = values[i] * inverse + 12582912.0f;
        const IVec<W> code = (IVec<W>)shifted - 0x4b400000;
        sums[i / (kVectors / 2)] += shifted - 12582912.0f;
        const IVec<W> upper = (code + 64) >> 7;
        store(high + i * W, __builtin_convertvector(upper, typename VecOf<W>::B));
        store(low + i * W, __builtin_convertvector(code - (upper << 7), typename VecOf<W>::B));
      }
      for (int i = 0; i < kGroupSize / 4; ++i) {
        __builtin_memcpy(out + (i * a.rows + r) * 4, high + 4 * i, 4);
        __builtin_memcpy(out + kGroupSize * a.rows + (i * a.rows + r) * 4, low + 4 * i, 4);
      }
      char* scales = out + 2 * kGroupSize * a.rows + 4 * r;
      __builtin_memcpy(scales, &scale, sizeof(scale));
      for (int sub = 0; sub < subs; ++sub) {
        // A group with a NaN has a scale of NaN, whatever its codes; no integer stands for their
        // sum.
        const float codes = horizontal_sum<W>(subs == 2 ? sums[sub] : sums[0] + sums[1]);
        const int32_t sum = codes == codes ? static_cast<int32_t>(codes) : 0;
        const float scaled = scale * static_cast<float>(sum);
        const int32_t offset = -layout.zero_point * sum;
        char* correction = scales + 4 * a.rows * (1 + sub);
        if (layout.has_min()) {
          __builtin_memcpy(correction, &scaled, sizeof(scaled));
        } else {
          __builtin_memcpy(correction, &offset, sizeof(offset));
        }
      }
      out += layout.quantized_bytes() * a.rows;
    }
  }
}

template <int W, int... Formats>
constexpr QuantizedKernels quantized_kernels(std::integer_sequence<int, Formats...>) {
  return {{quantized_linear<static_cast<GroupFormat>(Formats), W>...},
          {quantize_rows<float, W>, quantize_rows<bfloat16, W>},
          kQuantizedShape.tall_rows};
}

constexpr QuantizedKernels kQuantized =
    quantized_kernels<kLanes>(std::make_integer_sequence<int, kNumGroupFormats>{});
