#include "ops/attention_run.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <memory>

#include "threads/parallel.h"

namespace paged_stream {
namespace {

constexpr float kLog2E = 1.44269504f;
constexpr int64_t kMinWorkPerThread = 2048;  // scores; fewer take less time than a wake-up

// Threads must not throw, so the first one to find a bad block id records it here.
struct BadBlock {
  std::atomic<bool> found{false};
  int64_t position = 0;
  int64_t column = 0;
  int64_t block_id = 0;

  void note(int64_t where, int64_t at_column, int64_t id) {
    if (found.exchange(true)) return;
    position = where;
    column = at_column;
    block_id = id;
  }
};

struct ThreadBuffers {
  GrowingBuffer<float> floats;
  GrowingBuffer<int64_t> offsets;
  GrowingBuffer<RowView> views;
};

class Attention {
 public:
  Attention(const AttentionInputs& inputs, const AttentionPlan& plan,
            const AttentionKernels& kernels)
      : in_(inputs),
        plan_(plan),
        kernels_(kernels),
        dim_(kernels.padded_dim(static_cast<int>(inputs.head_dim))),
        max_rows_(padded_rows(plan.max_tile_tokens * inputs.group_size())) {
    static thread_local GrowingBuffer<float> parts;
    parts_ = parts.get(plan.num_part_rows * in_.num_kv_heads * (dim_ + 2));
    countdowns_.reset(new std::atomic<int>[plan.num_cut_tiles * in_.num_kv_heads]());
  }

  void run(const Checker& check) {
    const int64_t num_items = static_cast<int64_t>(plan_.items.size()) * in_.num_kv_heads;
    for_each_item(num_items, plan_.work * in_.num_kv_heads, kMinWorkPerThread, [&](int64_t i) {
      run_item(plan_.items[i / in_.num_kv_heads], i % in_.num_kv_heads);
    });
    check.require(!bad_block_.found, "block_table column ", bad_block_.column, ", for position ",
                  bad_block_.position, ", must be a block id in [0, ", in_.num_blocks, "), got ",
                  bad_block_.block_id);
  }

 private:
  struct Scratch {
    float* query;   // [max_rows, dim], packed
    float* states;  // two of the largest tile
    AttentionScratch kernel;
    int64_t* offsets;
    RowView* views;
  };

  Scratch scratch() const {
    static thread_local ThreadBuffers buffers;
    const int64_t packed = kRunKeys * dim_, query = max_rows_ * dim_;
    Scratch s{};
    s.query = buffers.floats.get(query + 2 * packed + kMaxRowsDirect * kRunKeys +
                                 2 * state_size(max_rows_));
    s.kernel.packed_k = s.query + query;
    s.kernel.packed_v = s.kernel.packed_k + packed;
    s.kernel.scores = s.kernel.packed_v + packed;
    s.states = s.kernel.scores + kMaxRowsDirect * kRunKeys;
    s.offsets = buffers.offsets.get(kKeyAlignment + kPartKeys + 2 * kKeyPadding);
    s.views = buffers.views.get(max_rows_);
    return s;
  }

  void run_item(const AttentionItem& item, int64_t kv_head) {
    const Tile& tile = plan_.tiles[item.tile];
    const Scratch s = scratch();
    const bool is_cut = tile.num_items > 1;
    const int64_t size = state_size(padded_rows(num_rows(tile)));
    // The parts of a tile and head are adjacent.
    float* const states = is_cut ? parts_ + tile.first_part_row * in_.num_kv_heads * (dim_ + 2) +
                                       kv_head * tile.num_parts() * size
                                 : s.states;
    const SoftmaxState total = state_at(tile, states);
    for (int part = item.first_part; part < item.end_part; ++part) {
      const KeyPart keys = tile.part(part);
      const bool is_first = part == item.first_part || part == tile.sinks.num_parts();
      if (is_first) pack(tile, kv_head, keys.is_sinks, s.query);
      const SoftmaxState state = state_at(tile, states + (is_cut ? part : part > 0) * size);
      clear(state);
      if (!run_part(tile, kv_head, keys, part + 1 < item.end_part, s, state)) return;
      if (!is_cut && part > 0) kernels_.merge(total, state, head_dim());
    }
    if (is_cut) {
      std::atomic<int>& done = countdowns_[tile.index * in_.num_kv_heads + kv_head];
      if (done.fetch_add(1, std::memory_order_acq_rel) + 1 < tile.num_items) return;
      for (int64_t part = 1; part < tile.num_parts(); ++part) {
        kernels_.merge(total, state_at(tile, states + part * size), head_dim());
      }
    }
    write(tile, kv_head, total);
  }

  int head_dim() const { return static_cast<int>(in_.head_dim); }
  int num_rows(const Tile& tile) const {
    return tile.num_tokens * static_cast<int>(in_.group_size());
  }

  int64_t state_size(int64_t rows) const { return rows * (dim_ + 2); }

  SoftmaxState state_at(const Tile& tile, float* memory) const {
    const int64_t rows = padded_rows(num_rows(tile));
    return {num_rows(tile), memory, memory + rows, memory + 2 * rows};
  }

  void clear(const SoftmaxState& state) const {
    std::fill_n(state.max, state.num_rows, -INFINITY);
    std::fill_n(state.sum, state.num_rows, 0.0f);
    std::fill_n(state.acc, padded_rows(state.num_rows) * dim_, 0.0f);
  }

  // Processes a part of a tile's keys, run by run. False on a bad block.
  bool run_part(const Tile& tile, int64_t kv_head, const KeyPart& part, bool goes_on,
                const Scratch& s, const SoftmaxState& state) {
    const int64_t first = part.begin / kKeyAlignment * kKeyAlignment;
    int64_t last = part.end;
    if (goes_on && !part.is_sinks) last = std::min(last + kKeyPadding, tile.window.end);
    if (!find_keys(*tile.sequence, kv_head, first, part.begin, last, s.offsets)) return false;
    const auto attend =
        state.num_rows <= kMaxRowsDirect ? kernels_.attend_direct : kernels_.attend_packed;
    for (int64_t begin = first, end; begin < part.end; begin = end) {
      end = std::min(begin / kRunKeys * kRunKeys + kRunKeys, part.end);
      for (int row = 0; row < state.num_rows; ++row) {
        const int64_t position = tile.first_position + row / in_.group_size();
        s.views[row] = row_view(tile, position, part, begin, end);
        if (in_.alibi_slopes != nullptr) {
          const int64_t head = kv_head * in_.group_size() + row % in_.group_size();
          s.views[row].slope = kLog2E * in_.alibi_slopes[head];
        }
      }
      const KeyRun run{in_.k_cache,
                       in_.v_cache,
                       s.offsets + (begin - first),
                       static_cast<int>(end - begin),
                       s.query,
                       in_.scale * kLog2E,
                       s.views,
                       in_.alibi_slopes != nullptr,
                       in_.softcap};
      attend(run, head_dim(), state, s.kernel);
    }
    return true;
  }

  // Returns what the row at `position` sees of a run of keys [begin, end) that lies in a part.
  RowView row_view(const Tile& tile, int64_t position, const KeyPart& part, int64_t begin,
                   int64_t end) const {
    const SinkWindow& window = tile.sequence->sink_window;
    const int64_t start = part.is_sinks ? window.sink_start(position, in_.local_window)
                                        : window.window_start(position, in_.local_window);
    const int64_t place = part.is_sinks ? window.sink_position(position) : position;
    const int64_t n = end - begin;
    const int64_t first_seen = std::clamp<int64_t>(std::max(start, part.begin) - begin, 0, n);
    const int64_t end_seen = std::clamp<int64_t>(position + 1 - begin, 0, n);
    return {static_cast<int32_t>(first_seen), static_cast<int32_t>(end_seen), 0.0f,
            static_cast<float>(place - begin)};
  }

  // Finds the offsets of the keys at positions [begin, end), preceded by copies of the first one
  // from position `first` on and followed by copies of the last one.
  bool find_keys(const SequenceView& sequence, int64_t kv_head, int64_t first, int64_t begin,
                 int64_t end, int64_t* offsets) {
    const SinkWindow& window = sequence.sink_window;
    const int64_t sinks = window.num_sink_blocks(in_.block_size);
    const int64_t row_width = sinks + sequence.ring_blocks;
    int64_t column = window.column(begin / in_.block_size, sequence.ring_blocks, in_.block_size);
    int64_t row = begin % in_.block_size;
    int64_t* out = offsets + (begin - first);
    for (int64_t position = begin; position < end; row = 0) {
      const int64_t id = sequence.block_row[column];
      if (id < 0 || id >= in_.num_blocks) {
        bad_block_.note(position, column, id);
        return false;
      }
      const int64_t base = id * in_.block_stride + (kv_head * in_.block_size + row) * in_.row_size;
      const int64_t count = std::min(in_.block_size - row, end - position);
      for (int64_t i = 0; i < count; ++i) *out++ = base + i * in_.row_size;
      position += count;
      if (++column == row_width) column = sinks;
    }
    std::fill_n(offsets, begin - first, offsets[begin - first]);
    std::fill_n(out, kKeyPadding, out[-1]);
    return true;
  }

  template <class Visit>
  void for_each_row(const Tile& tile, int64_t kv_head, const Visit& visit) const {
    const int64_t group = in_.group_size();
    for (int row = 0; row < num_rows(tile); ++row) {
      visit(row, tile.first_token + row / group, kv_head * group + row % group);
    }
  }

  // Packs a tile's queries for the sinks or for the window.
  void pack(const Tile& tile, int64_t kv_head, bool is_sinks, float* packed) const {
    const char* query = is_sinks ? in_.sink_query : in_.query;
    const int64_t stride = is_sinks ? in_.sink_query_stride : in_.query_stride;
    for_each_row(tile, kv_head, [&](int row, int64_t token, int64_t head) {
      const char* source = query + token * stride + head * in_.head_dim * in_.element_size;
      kernels_.pack_query(source, head_dim(), packed + row * dim_);
    });
  }

  void write(const Tile& tile, int64_t kv_head, const SoftmaxState& state) const {
    for_each_row(tile, kv_head, [&](int row, int64_t token, int64_t head) {
      char* out = in_.out + (token * in_.num_heads + head) * in_.head_dim * in_.element_size;
      kernels_.write_output(state.acc + row * dim_, state.sum[row], head_dim(), out);
    });
  }

  const AttentionInputs& in_;
  const AttentionPlan& plan_;
  const AttentionKernels& kernels_;
  const int64_t dim_;
  const int64_t max_rows_;
  float* parts_;
  std::unique_ptr<std::atomic<int>[]> countdowns_;
  BadBlock bad_block_;
};

}  // namespace

void run_attention(const Checker& check, const AttentionInputs& inputs, const AttentionPlan& plan,
                   const AttentionKernels& kernels) {
  Attention(inputs, plan, kernels).run(check);
}

}  // namespace paged_stream
