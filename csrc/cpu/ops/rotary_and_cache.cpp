// Rotates queries and keys, and writes keys and values to their slots, in one pass.

#include "ops/rotary_and_cache.h"

#include <torch/csrc/stable/library.h>

#include <vector>

#include "dtype.h"
#include "ops/cache_rows.h"
#include "threads/parallel.h"

namespace paged_stream {
namespace {

void rotary_and_cache(const Tensor& query, const std::optional<Tensor>& sink_query,
                      const Tensor& key, const Tensor& value, const Tensor& k_cache,
                      const Tensor& v_cache, const Tensor& rotary,
                      const std::optional<Tensor>& sink_rotary, const Tensor& slot_mapping,
                      bool interleaved) {
  constexpr Checker check("rotary_and_cache");
  check.rotary_and_cache(query, sink_query, key, value, k_cache, v_cache, rotary, sink_rotary);
  const std::vector<int64_t> slots = read_slots(check, slot_mapping, query.size(0), k_cache);
  const auto step = RotaryStep::read(check, rotary, sink_rotary, interleaved, slots, k_cache);
  const Heads sinks = sink_query ? heads_of(*sink_query) : Heads{nullptr, 0, query.size(1)};
  rotate_and_store(heads_of(query), sinks, heads_of(key), heads_of(value), dtype_of(query), k_cache,
                   v_cache, step);
}

}  // namespace

RotaryStep RotaryStep::read(const Checker& check, const Tensor& rotary,
                            const std::optional<Tensor>& sink_rotary, bool interleaved,
                            const Slots& slots, const Tensor& cache) {
  check.rotary_tables(rotary, sink_rotary, static_cast<int64_t>(slots.size()), cache);
  return {Angles(rotary, interleaved), Angles(sink_rotary, interleaved), slots};
}

void rotate_and_store(const Heads& query, const Heads& sink_query, const Heads& key,
                      const Heads& value, DType dtype, const Tensor& k_cache, const Tensor& v_cache,
                      const RotaryStep& step) {
  const int64_t dim = head_dim_of(k_cache), size = size_of(dtype);
  const SlotWriter writer(key, value, dtype, dim, k_cache, v_cache, step.slots, step.angles);
  const HeadMover mover(dtype, dtype, dim);
  const int64_t grain = writer.shape.grain(query.num_heads + 2 * k_cache.size(1));
  for_each_range(static_cast<int64_t>(step.slots.size()), grain, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      char* const row = query.token(t, size);
      if (sink_query.data != nullptr) {
        char* const sink_row = sink_query.token(t, size);
        mover.move(row, dim, sink_row, dim, query.num_heads, step.sink_angles, t);
      }
      mover.move(row, dim, row, dim, query.num_heads, step.angles, t);
      writer.write(t);
    }
  });
}

}  // namespace paged_stream

STABLE_TORCH_LIBRARY_IMPL(paged_stream, CPU, m) {
  m.impl("rotary_and_cache", TORCH_BOX(&paged_stream::rotary_and_cache));
}
