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
    const int64_t num_counters = plan.num_counters * in_.num_kv_heads;
    countdowns_.reset(new std::atomic<int>[num_counters]());
  }

  void run(const Checker& check) {
    const int64_t num_items = static_cast<int64_t>(plan_.items.size()) * in_.num_kv_heads;
    for_each_item(num_items, plan_.work * in_.num_kv_heads, kMinWorkPerThread, [&](int64_t i) {
      const auto [tile, split] = plan_.items[i / in_.num_kv_heads];
      run_item(plan_.tiles[tile], split, i % in_.num_kv_heads);
    });
    check.require(!bad_block_.found, "block_table column ", bad_block_.column, ", for position ",
                  bad_block_.position, ", must be a block id in [0, ", in_.num_blocks, "), got ",
                  bad_block_.block_id);
  }

 private:
  struct Scratch {
    float* query;       // [max_rows, dim], packed
    float* sink_query;  // same
    float* state;       // of the largest tile
    AttentionScratch kernel;
    int64_t* offsets;
    RowView* views;
  };

  Scratch scratch() const {
    static thread_local ThreadBuffers buffers;
    const int64_t scores =
        std::max<int64_t>(kMaxRowsDirect * kMaxRunDirect, kRowPadding * kMaxRunPacked);
    const int64_t packed = kMaxRunPacked * dim_;
    float* p = buffers.floats.get(3 * max_rows_ * (dim_ + 2) + scores + 2 * packed);
    Scratch s{};
    s.query = p;
    s.sink_query = s.query + max_rows_ * dim_;
    s.kernel.packed_k = s.sink_query + max_rows_ * dim_;
    s.kernel.packed_v = s.kernel.packed_k + packed;
    s.kernel.scores = s.kernel.packed_v + packed;
    s.state = s.kernel.scores + scores;
    s.offsets = buffers.offsets.get(kMaxRunDirect + kKeyPadding);
    s.views = buffers.views.get(max_rows_);
    return s;
  }

  void run_item(const Tile& tile, int split, int64_t kv_head) {
    const Scratch s = scratch();
    const bool is_split = tile.num_splits > 1;
    // The splits of a tile and head are adjacent.
    const int64_t part_size = padded_rows(num_rows(tile)) * (dim_ + 2);
    float* parts = s.state;
    if (is_split) {
      parts = parts_ + tile.first_part_row * in_.num_kv_heads * (dim_ + 2) +
              kv_head * tile.num_splits * part_size;
    }
    const SoftmaxState state = new_state(tile, parts + split * part_size);
    const int64_t begin = split * tile.split_len;
    const int64_t end = std::min(begin + tile.split_len, tile.num_keys());
    if (!run_sinks(tile, kv_head, begin, std::min(end, tile.num_sinks()), s, state) ||
        !run_window(tile, kv_head, std::max(begin, tile.num_sinks()), end, s, state)) {
      return;
    }
    const SoftmaxState first = state_at(tile, parts);
    if (is_split) {
      std::atomic<int>& done = countdowns_[tile.first_counter * in_.num_kv_heads + kv_head];
      if (done.fetch_add(1, std::memory_order_acq_rel) + 1 < tile.num_splits) return;
      kernels_.merge(first, part_size, tile.num_splits, head_dim());
    }
    write(tile, kv_head, first);
  }

  int head_dim() const { return static_cast<int>(in_.head_dim); }
  int num_rows(const Tile& tile) const {
    return tile.num_tokens * static_cast<int>(in_.group_size());
  }

  SoftmaxState state_at(const Tile& tile, float* memory) const {
    const int64_t rows = padded_rows(num_rows(tile));
    return {num_rows(tile), memory, memory + rows, memory + 2 * rows};
  }

  SoftmaxState new_state(const Tile& tile, float* memory) const {
    const SoftmaxState state = state_at(tile, memory);
    std::fill_n(state.max, state.num_rows, -INFINITY);
    std::fill_n(state.sum, state.num_rows, 0.0f);
    std::fill_n(state.acc, padded_rows(state.num_rows) * dim_, 0.0f);
    return state;
  }

  // Processes keys [begin, end) of the tile's key list, all sink keys. False on a bad block.
  bool run_sinks(const Tile& tile, int64_t kv_head, int64_t begin, int64_t end, const Scratch& s,
                 const SoftmaxState& state) {
    if (begin >= end) return true;
    pack(tile, kv_head, in_.sink_query, in_.sink_query_stride, s.sink_query);
    const SinkWindow& window = tile.sequence->sink_window;
    const int64_t shift = tile.sink_begin;
    return run_keys(tile, kv_head, begin + shift, end + shift, s.sink_query, s, state,
                    [&](int64_t position, int64_t first, int64_t n) {
                      const int64_t start = window.sink_start(position, in_.local_window);
                      return row_view(start, position, window.sink_position(position), first, n);
                    });
  }

  // Processes keys [begin, end) of the tile's key list, all window keys. False on a bad block.
  bool run_window(const Tile& tile, int64_t kv_head, int64_t begin, int64_t end, const Scratch& s,
                  const SoftmaxState& state) {
    if (begin >= end) return true;
    pack(tile, kv_head, in_.query, in_.query_stride, s.query);
    const SinkWindow& window = tile.sequence->sink_window;
    const int64_t shift = tile.window_begin - tile.num_sinks();
    return run_keys(tile, kv_head, begin + shift, end + shift, s.query, s, state,
                    [&](int64_t position, int64_t first, int64_t n) {
                      const int64_t start = window.window_start(position, in_.local_window);
                      return row_view(start, position, position, first, n);
                    });
  }

  // Returns the part of [start, position], the keys visible to the row at `position`, that lies in
  // a run of keys [first, first + n). place: the row's position relative to these keys, for ALiBi.
  static RowView row_view(int64_t start, int64_t position, int64_t place, int64_t first,
                          int64_t n) {
    const int64_t begin = std::clamp<int64_t>(start - first, 0, n);
    const int64_t end = std::clamp<int64_t>(position + 1 - first, 0, n);
    return {static_cast<int32_t>(begin), static_cast<int32_t>(end), 0.0f,
            static_cast<float>(place - first)};
  }

  // Processes the keys at positions [begin, end). view(position, first, n) returns the part visible
  // to the row at `position` of the n keys from `first`.
  template <class View>
  bool run_keys(const Tile& tile, int64_t kv_head, int64_t begin, int64_t end, const float* query,
                const Scratch& s, const SoftmaxState& state, const View& view) {
    const bool direct = state.num_rows <= kMaxRowsDirect;
    const int64_t longest = direct ? kMaxRunDirect : kMaxRunPacked;
    const auto attend = direct ? kernels_.attend_direct : kernels_.attend_packed;
    for (int64_t first = begin; first < end; first += longest) {
      const int64_t n = std::min(longest, end - first);
      if (!find_keys(*tile.sequence, kv_head, first, n, s.offsets)) return false;
      for (int row = 0; row < state.num_rows; ++row) {
        const int64_t token = row / in_.group_size();
        s.views[row] = view(tile.first_position + token, first, n);
        if (in_.alibi_slopes != nullptr) {
          const int64_t head = kv_head * in_.group_size() + row % in_.group_size();
          s.views[row].slope = kLog2E * in_.alibi_slopes[head];
        }
      }
      const KeyRun run{in_.k_cache, in_.v_cache,        s.offsets, static_cast<int>(n),
                       query,       in_.scale * kLog2E, s.views,   in_.alibi_slopes != nullptr,
                       in_.softcap};
      attend(run, head_dim(), state, s.kernel);
    }
    return true;
  }

  // Finds the offsets of the keys at positions [first, first + n) and pads them with the last one.
  bool find_keys(const SequenceView& sequence, int64_t kv_head, int64_t first, int64_t n,
                 int64_t* offsets) {
    const SinkWindow& window = sequence.sink_window;
    const int64_t sinks = window.num_sink_blocks(in_.block_size);
    const int64_t row_width = sinks + sequence.ring_blocks;
    int64_t column = window.column(first / in_.block_size, sequence.ring_blocks, in_.block_size);
    int64_t row = first % in_.block_size;
    for (int64_t done = 0; done < n; row = 0) {
      const int64_t id = sequence.block_row[column];
      if (id < 0 || id >= in_.num_blocks) {
        bad_block_.note(first + done, column, id);
        return false;
      }
      const int64_t base = id * in_.block_stride + (kv_head * in_.block_size + row) * in_.row_size;
      const int64_t count = std::min(in_.block_size - row, n - done);
      for (int64_t i = 0; i < count; ++i) offsets[done + i] = base + i * in_.row_size;
      done += count;
      if (++column == row_width) column = sinks;
    }
    std::fill_n(offsets + n, kKeyPadding, offsets[n - 1]);
    return true;
  }

  template <class Visit>
  void for_each_row(const Tile& tile, int64_t kv_head, const Visit& visit) const {
    const int64_t group = in_.group_size();
    for (int row = 0; row < num_rows(tile); ++row) {
      visit(row, tile.first_token + row / group, kv_head * group + row % group);
    }
  }

  void pack(const Tile& tile, int64_t kv_head, const char* query, int64_t stride,
            float* packed) const {
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
