// Rows times a packed bfloat16 weight, added in the order of linear.h. Included after
// linear_common.inl, once per instruction set. Before it, the including file defines
//
//   kBFloat16Shape: its tiles, best such that both sums of a group fit the registers,
//   PairInput: as many bytes as a pair of one row's x takes, packed,
//   pack_pairs<W>: the PackRowsFn that packs a tile into [pair][row],
//   add_pair<W>(sums, x, pairs): adds the products of a pair of each row with one of each column.

// While it lives, denormal numbers are zero, as they always are to bfloat16 instructions.
class DenormalsAreZero {
#if defined(__x86_64__)
 public:
  DenormalsAreZero() : before_(__builtin_ia32_stmxcsr()) {
    constexpr unsigned kFlushResults = 1 << 15, kFlushInputs = 1 << 6;
    __builtin_ia32_ldmxcsr(before_ | kFlushResults | kFlushInputs);
  }
  ~DenormalsAreZero() { __builtin_ia32_ldmxcsr(before_); }

 private:
  const unsigned before_;
#endif
};

constexpr int64_t kBFloat16Tiles = kRowsPerItem / kBFloat16Shape.tall_rows;

template <int W>
struct BFloat16Tile {
  static constexpr int64_t kStep = 2;  // a pair
  static constexpr int64_t kStepBytes = kLineBytes;
  static constexpr int64_t kGroup = kBFloat16Group / kStep;
  // All in one pass: between passes, sums would take another way through memory.
  static constexpr int64_t kSpan = int64_t{1} << 40;
  static constexpr int64_t kMaxTiles = kBFloat16Tiles;

  template <int Rows, int Panels>
  static void run(const LinearArgs& a, int64_t row, int64_t panel, const Span& span) {
    constexpr int V = Panels * kLinearPanel / W;
    constexpr bool kTogether = (2 * Rows + 1) * V < kNumVectorRegisters;
    const PairInput* x =
        static_cast<const PairInput*>(a.x) + row * span.num_steps + span.begin * Rows;
    const PanelLines<W, V> lines(a, panel, span);
    Vec<W> acc[Rows][V];
    begin_span<W>(acc, span);
    for (int64_t first = span.begin; first < span.end; first += kGroup, x += kGroup * Rows) {
      const int64_t size = first + kGroup < span.end ? kGroup : span.end - first;
      Vec<W> even[Rows][V] = {}, odd[Rows][V] = {};
      if constexpr (kTogether) {
        int64_t i = 0;
        for (; i + 2 <= size; i += 2) {
          add_line(even, x, lines, first, i);
          add_line(odd, x, lines, first, i + 1);
        }
        if (i < size) add_line(even, x, lines, first, i);
      } else {
        for (int64_t i = 0; i < size; i += 2) add_line(even, x, lines, first, i);
        for (int64_t i = 1; i < size; i += 2) add_line(odd, x, lines, first, i);
      }
      for (int r = 0; r < Rows; ++r) {
        for (int i = 0; i < V; ++i) acc[r][i] += even[r][i] + odd[r][i];
      }
    }
    end_span<W>(acc, span, a, row, panel);
  }

  template <int Rows, int V>
  PS_INLINE static void add_line(Vec<W> (&sums)[Rows][V], const PairInput* x,
                                 const PanelLines<W, V>& lines, int64_t first, int64_t i) {
    lines.prefetch(first + i);
    UVec<W> pairs[V];
    for (int v = 0; v < V; ++v) pairs[v] = load<UVec<W>>(lines.at(first + i, v));
    add_pair<W>(sums, x + i * Rows, pairs);
  }
};

// A call of its own, so that no arithmetic moves out of the guard's scope.
template <int W>
[[gnu::noinline]] void run_bfloat16_tiles(const LinearArgs& a) {
  run_tiles<BFloat16Tile<W>, kBFloat16Shape>(a);
}

template <int W>
void bfloat16_linear(const LinearArgs& a) {
  [[maybe_unused]] const DenormalsAreZero guard{};
  run_bfloat16_tiles<W>(a);
}

constexpr DenseKernels kBFloat16Linear = {bfloat16_linear<kLanes>, pack_pairs<kLanes>,
                                          kBFloat16Shape.tall_rows, kBFloat16Tiles,
                                          sizeof(PairInput) / 2};
