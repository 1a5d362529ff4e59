// Ops that write, read and turn cached keys and values on the CPU.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstring>
#include <optional>
#include <tuple>
#include <unordered_set>

#include "checks.h"
#include "dtype.h"
#include "kernels/kernels.h"
#include "ops/paged_attention.h"
#include "threads/parallel.h"

namespace paged_stream {
namespace {

constexpr int64_t kMinBytesPerThread = 32 * 1024;

struct CacheShape {
  DType dtype;
  int64_t num_blocks, num_kv_heads, block_size, row_size, head_dim, block_stride, element_size;

  explicit CacheShape(const Tensor& cache)
      : dtype(dtype_of(cache)),
        num_blocks(cache.size(0)),
        num_kv_heads(cache.size(1)),
        block_size(cache.size(2)),
        row_size(cache.size(3)),
        head_dim(head_dim_of(cache)),
        block_stride(cache.stride(0)),
        element_size(static_cast<int64_t>(cache.element_size())) {}

  int64_t head_stride() const { return block_size * row_size; }

  // Byte offset of a slot's first head; its heads are head_stride() elements apart.
  int64_t slot_offset(int64_t slot) const {
    return paged_stream::slot_offset(slot, block_size, block_stride, row_size) * element_size;
  }

  int64_t grain(int64_t heads) const {
    return std::max<int64_t>(1, kMinBytesPerThread / (heads * row_size * element_size));
  }
};

// Copies heads of tokens from one dtype to the same or to that of a quantised cache.
struct HeadMover {
  RotateFn rotate;
  int64_t head_dim;

  HeadMover(DType from, DType to, int64_t head_dim)
      : rotate(kernels().rotate(from, to)), head_dim(head_dim) {}

  // One token's heads, rotated by the angles of `row`; strides in elements.
  void move(const char* src, int64_t src_stride, char* dst, int64_t dst_stride, int64_t heads,
            const Angles& angles, int64_t row) const {
    rotate({src, dst, heads, src_stride, dst_stride, head_dim, angles.data + row * angles.dim,
            angles.dim, angles.interleaved});
  }
};

char* bytes(const Tensor& t) { return static_cast<char*>(t.mutable_data_ptr()); }
const char* const_bytes(const Tensor& t) { return static_cast<const char*>(t.const_data_ptr()); }

// Checks the mapping's form and every slot in it, before anything is written.
const int64_t* check_slots(const Checker& check, const Tensor& slot_mapping, int64_t rows,
                           const Tensor& cache) {
  check.metadata(slot_mapping, "slot_mapping", ScalarType::Long, "[T]", {rows}, cache);
  const int64_t* slots = slot_mapping.const_data_ptr<int64_t>();
  const int64_t num_slots = cache.size(0) * cache.size(2);
  for (int64_t i = 0; i < slot_mapping.size(0); ++i) {
    if (slots[i] >= -1 && slots[i] < num_slots) continue;
    check.require(false, "slot_mapping must lie in [-1, ", num_slots, "), got ", slots[i], " at ",
                  i);
  }
  return slots;
}

int64_t size_of(DType dtype) {
  if (dtype == DType::kInt8) return 1;
  return dtype == DType::kFloat32 ? 4 : 2;
}

// Writes one token's key (rotated) and value to its slot.
struct SlotWriter {
  CacheShape shape;
  HeadMover mover;
  Heads key, value;
  DType dtype;          // of both
  int64_t head_stride;  // elements between their heads
  char *k_cache, *v_cache;
  const int64_t* slots;
  Angles angles;

  SlotWriter(const Heads& key, const Heads& value, DType dtype, int64_t head_stride,
             const Tensor& k_cache, const Tensor& v_cache, const int64_t* slots,
             const Angles& angles)
      : shape(k_cache),
        mover(dtype, shape.dtype, shape.head_dim),
        key(key),
        value(value),
        dtype(dtype),
        head_stride(head_stride),
        k_cache(bytes(k_cache)),
        v_cache(bytes(v_cache)),
        slots(slots),
        angles(angles) {}

  void write(int64_t token) const {
    if (slots[token] < 0) return;
    const int64_t offset = shape.slot_offset(slots[token]), size = size_of(dtype);
    mover.move(key.token(token, size), head_stride, k_cache + offset, shape.head_stride(),
               shape.num_kv_heads, angles, token);
    mover.move(value.token(token, size), head_stride, v_cache + offset, shape.head_stride(),
               shape.num_kv_heads, Angles(), token);
  }
};

Heads heads_of(const Tensor& t) { return {t.data_ptr(), t.stride(0), t.size(1)}; }

void rotary_and_cache(const Tensor& query, const std::optional<Tensor>& sink_query,
                      const Tensor& key, const Tensor& value, const Tensor& k_cache,
                      const Tensor& v_cache, const Tensor& rotary,
                      const std::optional<Tensor>& sink_rotary, const Tensor& slot_mapping,
                      bool interleaved) {
  constexpr Checker check("rotary_and_cache");
  check.rotary_and_cache(query, sink_query, key, value, k_cache, v_cache, rotary, sink_rotary);
  const int64_t num_tokens = query.size(0);
  const auto step =
      RotaryStep::read(check, rotary, sink_rotary, slot_mapping, interleaved, num_tokens, k_cache);
  const Heads sinks = sink_query ? heads_of(*sink_query) : Heads{nullptr, 0, query.size(1)};
  rotate_and_store(heads_of(query), sinks, heads_of(key), heads_of(value), dtype_of(query), k_cache,
                   v_cache, step);
}

}  // namespace

RotaryStep RotaryStep::read(const Checker& check, const Tensor& rotary,
                            const std::optional<Tensor>& sink_rotary, const Tensor& slot_mapping,
                            bool interleaved, int64_t num_tokens, const Tensor& cache) {
  check.rotary_tables(rotary, sink_rotary, num_tokens, cache);
  const int64_t* slots = check_slots(check, slot_mapping, num_tokens, cache);
  return {Angles(rotary, interleaved), Angles(sink_rotary, interleaved), slots, num_tokens};
}

void rotate_and_store(const Heads& query, const Heads& sink_query, const Heads& key,
                      const Heads& value, DType dtype, const Tensor& k_cache, const Tensor& v_cache,
                      const RotaryStep& step) {
  const int64_t dim = head_dim_of(k_cache), size = size_of(dtype);
  const SlotWriter writer(key, value, dtype, dim, k_cache, v_cache, step.slots, step.angles);
  const HeadMover mover(dtype, dtype, dim);
  const int64_t grain = writer.shape.grain(query.num_heads + 2 * k_cache.size(1));
  for_each_range(step.num_tokens, grain, [&](int64_t begin, int64_t end) {
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

namespace {

std::tuple<Tensor, Tensor> gather_blocks(const Tensor& k_cache, const Tensor& v_cache,
                                         const Tensor& slot_mapping,
                                         const std::optional<Tensor>& rotary, bool interleaved) {
  const Checker check("gather_blocks");
  check.cache_pair(k_cache, v_cache);
  const int64_t* slots = check_slots(check, slot_mapping, kAny, k_cache);
  const int64_t n = slot_mapping.size(0);
  if (rotary) check.rotary(*rotary, "rotary", n, head_dim_of(k_cache), k_cache);
  const CacheShape shape(k_cache);
  const HeadMover mover(shape.dtype, shape.dtype, shape.head_dim);
  const int64_t heads = shape.num_kv_heads, stride = shape.head_stride();
  Tensor key = torch::stable::new_empty(k_cache, {n, heads, shape.row_size});
  Tensor value = torch::stable::new_empty(k_cache, {n, heads, shape.row_size});
  const Angles angles(rotary, interleaved);
  const char *k = const_bytes(k_cache), *v = const_bytes(v_cache);
  char *key_out = bytes(key), *value_out = bytes(value);
  const int64_t token_bytes = heads * shape.row_size * shape.element_size;
  for_each_range(n, shape.grain(2 * heads), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      char *key_row = key_out + i * token_bytes, *value_row = value_out + i * token_bytes;
      if (slots[i] < 0) {
        std::memset(key_row, 0, token_bytes);
        std::memset(value_row, 0, token_bytes);
        continue;
      }
      const int64_t offset = shape.slot_offset(slots[i]);
      mover.move(k + offset, stride, key_row, shape.row_size, heads, angles, i);
      mover.move(v + offset, stride, value_row, shape.row_size, heads, Angles(), i);
    }
  });
  return {key, value};
}

void scatter_blocks(const Tensor& key, const Tensor& value, const Tensor& k_cache,
                    const Tensor& v_cache, const Tensor& slot_mapping,
                    const std::optional<Tensor>& rotary, bool interleaved) {
  const Checker check("scatter_blocks");
  check.cache_pair(k_cache, v_cache);
  check.cache_rows(key, "key", kAny, k_cache);
  const int64_t n = key.size(0);
  check.cache_rows(value, "value", n, k_cache);
  if (rotary) check.rotary(*rotary, "rotary", n, head_dim_of(k_cache), k_cache);
  const int64_t* slots = check_slots(check, slot_mapping, n, k_cache);
  const SlotWriter writer(heads_of(key), heads_of(value), dtype_of(key), key.size(2), k_cache,
                          v_cache, slots, Angles(rotary, interleaved));
  for_each_range(n, writer.shape.grain(2 * k_cache.size(1)), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) writer.write(i);
  });
}

void rotary_reindex(const Tensor& k_cache, const Tensor& slot_mapping, const Tensor& rotary,
                    bool interleaved) {
  const Checker check("rotary_reindex");
  check.cache(k_cache, "k_cache");
  const int64_t* slots = check_slots(check, slot_mapping, kAny, k_cache);
  const int64_t n = slot_mapping.size(0);
  check.rotary(rotary, "rotary", n, head_dim_of(k_cache), k_cache);
  const CacheShape shape(k_cache);
  const HeadMover mover(shape.dtype, shape.dtype, shape.head_dim);
  const Angles angles(rotary, interleaved);
  char* k = bytes(k_cache);
  const int64_t stride = shape.head_stride();
  for_each_range(n, shape.grain(shape.num_kv_heads), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      if (slots[i] < 0) continue;
      char* row = k + shape.slot_offset(slots[i]);
      mover.move(row, stride, row, stride, shape.num_kv_heads, angles, i);
    }
  });
}

// No destination may be named twice or be a source as well: then the order of copies is free.
void check_block_mapping(const Checker& check, const int64_t* pairs, int64_t n,
                         int64_t num_blocks) {
  std::unordered_set<int64_t> destinations;
  for (int64_t i = 0; i < 2 * n; ++i) {
    check.require(pairs[i] >= 0 && pairs[i] < num_blocks, "block_mapping must lie in [0, ",
                  num_blocks, "), got ", pairs[i], " in pair ", i / 2);
    const bool is_new = i % 2 == 0 || destinations.insert(pairs[i]).second;
    check.require(is_new, "block_mapping must not name destination ", pairs[i], " twice");
  }
  for (int64_t i = 0; i < n; ++i) {
    check.require(destinations.count(pairs[2 * i]) == 0, "block_mapping must not have block ",
                  pairs[2 * i], " both as source and as destination");
  }
}

void copy_blocks(const Tensor& kv_cache, const Tensor& block_mapping) {
  const Checker check("copy_blocks");
  check.copy_blocks(kv_cache, block_mapping);
  const int64_t planes = kv_cache.size(0) * 2, num_blocks = kv_cache.size(2);
  const int64_t n = block_mapping.size(0);
  const int64_t* pairs = block_mapping.const_data_ptr<int64_t>();
  check_block_mapping(check, pairs, n, num_blocks);
  const int64_t block_bytes = kv_cache.size(3) * kv_cache.size(4) * kv_cache.size(5) *
                              static_cast<int64_t>(kv_cache.element_size());
  if (block_bytes == 0) return;
  char* data = bytes(kv_cache);
  const int64_t grain = std::max<int64_t>(1, kMinBytesPerThread / block_bytes);
  for_each_range(planes * n, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      char* plane = data + i / n * num_blocks * block_bytes;
      const int64_t* pair = pairs + i % n * 2;
      std::memcpy(plane + pair[1] * block_bytes, plane + pair[0] * block_bytes, block_bytes);
    }
  });
}

}  // namespace
}  // namespace paged_stream

STABLE_TORCH_LIBRARY_IMPL(paged_stream, CPU, m) {
  m.impl("rotary_and_cache", TORCH_BOX(&paged_stream::rotary_and_cache));
  m.impl("gather_blocks", TORCH_BOX(&paged_stream::gather_blocks));
  m.impl("scatter_blocks", TORCH_BOX(&paged_stream::scatter_blocks));
  m.impl("rotary_reindex", TORCH_BOX(&paged_stream::rotary_reindex));
  m.impl("copy_blocks", TORCH_BOX(&paged_stream::copy_blocks));
}
