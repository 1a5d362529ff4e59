// Argument checks shared by the launchers of every device. Each error names the op, the argument,
// what was expected and what was passed.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>

#include "cache_layout.h"
#include "value_limits.h"

namespace paged_stream {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kAny = -1;

inline bool is_quantized(const Tensor& cache) { return cache.scalar_type() == ScalarType::Char; }
// Float8 caches have no scale and exist on CUDA only.
inline bool is_float8(const Tensor& cache) {
  return cache.scalar_type() == ScalarType::Float8_e4m3fn && !cache.is_cpu();
}
// Returns the number of elements in a cache row, without the scale.
inline int64_t head_dim_of(const Tensor& cache) {
  return cache.size(3) - (is_quantized(cache) ? kScaleBytes : 0);
}
// Returns the stride between a tensor's rows. A single row may have any: its stride is 0 here.
inline int64_t row_stride(const Tensor& t) { return t.size(0) > 1 ? t.stride(0) : 0; }

// Checks an op's arguments. Every message starts with the op's name.
class Checker {
 public:
  explicit constexpr Checker(const char* op) : op_(op) {}

  // Builds the message only on failure.
  template <class... Parts>
  void require(bool condition, const Parts&... parts) const {
    if (!condition) STD_TORCH_CHECK(false, op_, ": ", parts...);
  }

  // Checks a number, before any arithmetic on it. name: the parts of what the message calls it.
  template <class... Name>
  void in_range(int64_t value, int64_t least, int64_t most, const Name&... name) const {
    require(value >= least && value <= most, name..., " must be in [", least, ", ", most, "], got ",
            value);
  }

  // A None for a tensor arrives as one that is undefined: no other check may come before this one.
  void defined(const Tensor& t, const char* name) const {
    require(t.defined(), name, " must be a tensor, got None");
  }

  // layout: the expected shape in words, as in "[T, num_heads, head_dim]"; kAny matches any size.
  void shape(const Tensor& t, const char* name, const char* layout,
             std::initializer_list<int64_t> expected) const {
    defined(t, name);
    const int64_t dim = t.dim();
    bool matches = dim == static_cast<int64_t>(expected.size());
    for (int64_t i = 0; matches && i < dim; ++i) {
      const int64_t size = expected.begin()[i];
      matches = size == kAny || size == t.size(i);
    }
    if (matches) return;
    STD_TORCH_CHECK(false, op_, ": ", name, " must have shape ", layout, " = ", describe(expected),
                    ", got ", describe(t.sizes()));
  }

  void same_shape(const Tensor& t, const char* name, const Tensor& other,
                  const char* other_name) const {
    defined(t, name);
    bool matches = t.dim() == other.dim();
    for (int64_t i = 0; matches && i < t.dim(); ++i) matches = t.size(i) == other.size(i);
    if (matches) return;
    STD_TORCH_CHECK(false, op_, ": ", name, " must have the shape of ", other_name, ", ",
                    describe(other.sizes()), ", got ", describe(t.sizes()));
  }

  void dtype(const Tensor& t, const char* name, ScalarType expected) const {
    dtype_is(t.scalar_type(), name, expected);
  }

  void dtype_is(ScalarType type, const char* name, ScalarType expected) const {
    if (type == expected) return;
    STD_TORCH_CHECK(false, op_, ": ", name, " must be ", torch::headeronly::toString(expected),
                    ", got ", torch::headeronly::toString(type));
  }

  // Checks for a dtype that models compute in on the tensor's device.
  void kv_dtype(const Tensor& t, const char* name) const {
    STD_TORCH_CHECK(is_kv_dtype(t), op_, ": ", name, " must be Float",
                    t.is_cpu() ? " or BFloat16 on CPU" : ", BFloat16 or Half on CUDA", ", got ",
                    torch::headeronly::toString(t.scalar_type()));
  }

  void cache_dtype(const Tensor& t, const char* name) const {
    STD_TORCH_CHECK(is_kv_dtype(t) || is_quantized(t) || is_float8(t), op_, ": ", name,
                    " must be Float, BFloat16",
                    t.is_cpu() ? " or Char on CPU" : ", Half, Char or Float8_e4m3fn on CUDA",
                    ", got ", torch::headeronly::toString(t.scalar_type()));
  }

  // Checks that dimensions `from` and up are contiguous.
  void dense(const Tensor& t, const char* name, int64_t from) const {
    if (t.numel() == 0) return;
    int64_t expected = 1;
    for (int64_t i = t.dim() - 1; i >= from; --i) {
      const int64_t size = t.size(i);
      if (size != 1 && t.stride(i) != expected) {
        STD_TORCH_CHECK(false, op_, ": ", name, " must be contiguous from dimension ", from,
                        " on, got shape ", describe(t.sizes()), " and strides ",
                        describe(t.strides()));
      }
      expected *= size;
    }
  }

  void same_device(const Tensor& t, const char* name, const Tensor& other) const {
    STD_TORCH_CHECK(
        t.is_cpu() == other.is_cpu() && t.get_device_index() == other.get_device_index(), op_, ": ",
        name, " must be on the same device as the other tensors, got ", device_of(t), " and ",
        device_of(other));
  }

  // Checks a contiguous tensor of plain metadata.
  void metadata(const Tensor& t, const char* name, ScalarType type, const char* layout,
                std::initializer_list<int64_t> expected, const Tensor& device_of) const {
    shape(t, name, layout, expected);
    dtype(t, name, type);
    dense(t, name, 0);
    same_device(t, name, device_of);
  }

  // k_cache or v_cache: [num_blocks, num_kv_heads, block_size, row_size].
  void cache(const Tensor& t, const char* name) const {
    shape(t, name, "[num_blocks, num_kv_heads, block_size, row_size]", {kAny, kAny, kAny, kAny});
    cache_dtype(t, name);
    dense(t, name, 1);
    head_dim(head_dim_of(t), is_quantized(t) ? " (row_size minus the 4-byte scale)" : "");
    in_range(t.size(1), 1, kMaxHeads, "num_kv_heads of ", name);
    in_range(t.size(2), 1, kMaxCount, "block_size of ", name);
    STD_TORCH_CHECK(t.size(0) <= kMaxCount / t.size(2), op_, ": ", name,
                    " must have fewer than 2^31 slots, got shape ", describe(t.sizes()));
  }

  // note: what the message says behind the number.
  void head_dim(int64_t value, const char* note = "") const {
    STD_TORCH_CHECK(value >= 8 && value <= kMaxHeadDim && value % 8 == 0, op_,
                    ": head_dim must be a multiple of 8 from 8 to ", kMaxHeadDim, ", got ", value,
                    note);
  }

  void cache_pair(const Tensor& k_cache, const Tensor& v_cache) const {
    cache(k_cache, "k_cache");
    cache(v_cache, "v_cache");
    same_shape(v_cache, "v_cache", k_cache, "k_cache");
    dtype(v_cache, "v_cache", k_cache.scalar_type());
    same_device(v_cache, "v_cache", k_cache);
    STD_TORCH_CHECK(k_cache.size(0) <= 1 || k_cache.stride(0) == v_cache.stride(0), op_,
                    ": k_cache and v_cache must have the same stride between blocks, got ",
                    k_cache.stride(0), " and ", v_cache.stride(0));
  }

  // Heads of tokens, [rows, heads, head_dim], in the model's dtype: the cache's own, unless that is
  // int8 or float8. Heads are contiguous, rows may be strided.
  void heads(const Tensor& t, const char* name, const char* layout, int64_t rows, int64_t heads,
             const Tensor& cache) const {
    shape(t, name, layout, {rows, heads, head_dim_of(cache)});
    in_range(t.size(0), 0, kMaxCount, "tokens of ", name);
    in_range(t.size(1), 0, kMaxHeads, "heads of ", name);
    if (is_quantized(cache) || is_float8(cache)) {
      kv_dtype(t, name);
    } else {
      dtype(t, name, cache.scalar_type());
    }
    dense(t, name, 1);
    same_device(t, name, cache);
  }

  // Rows in the cache's layout, [rows, num_kv_heads, row_size]; heads contiguous, rows strided.
  void cache_rows(const Tensor& t, const char* name, int64_t rows, const Tensor& cache) const {
    shape(t, name, "[N, num_kv_heads, row_size]", {rows, cache.size(1), cache.size(3)});
    dtype(t, name, cache.scalar_type());
    dense(t, name, 1);
    same_device(t, name, cache);
  }

  void rotary(const Tensor& t, const char* name, int64_t rows, int64_t head_dim,
              const Tensor& device_of) const {
    metadata(t, name, ScalarType::Float, "[T, rotary_dim]", {rows, kAny}, device_of);
    const int64_t dim = t.size(1);
    STD_TORCH_CHECK(dim % 2 == 0 && dim <= head_dim, op_, ": ", name,
                    " must have an even rotary_dim of at most head_dim ", head_dim, ", got ", dim);
  }

  // Checks the arguments of rotary_and_cache except the slots.
  void rotary_and_cache(const Tensor& query, const std::optional<Tensor>& sink_query,
                        const Tensor& key, const Tensor& value, const Tensor& k_cache,
                        const Tensor& v_cache, const Tensor& rotary,
                        const std::optional<Tensor>& sink_rotary) const {
    cache_pair(k_cache, v_cache);
    const int64_t num_kv_heads = k_cache.size(1);
    heads(query, "query", "[T, num_heads, head_dim]", kAny, kAny, k_cache);
    const int64_t num_tokens = query.size(0), num_heads = query.size(1);
    heads(key, "key", "[T, num_kv_heads, head_dim]", num_tokens, num_kv_heads, k_cache);
    heads(value, "value", "[T, num_kv_heads, head_dim]", num_tokens, num_kv_heads, k_cache);
    dtype(key, "key", query.scalar_type());
    dtype(value, "value", query.scalar_type());
    require(sink_query.has_value() == sink_rotary.has_value(),
            "sink_query and sink_rotary must be given together");
    rotary_tables(rotary, sink_rotary, num_tokens, k_cache);
    if (!sink_query) return;
    heads(*sink_query, "sink_query", "[T, num_heads, head_dim]", num_tokens, num_heads, k_cache);
    dtype(*sink_query, "sink_query", query.scalar_type());
  }

  // Checks a step's rotary table and, if given, the one for sink queries.
  void rotary_tables(const Tensor& rotary, const std::optional<Tensor>& sink_rotary,
                     int64_t num_tokens, const Tensor& cache) const {
    const int64_t head_dim = head_dim_of(cache);
    this->rotary(rotary, "rotary", num_tokens, head_dim, cache);
    if (!sink_rotary) return;
    this->rotary(*sink_rotary, "sink_rotary", num_tokens, head_dim, cache);
    same_shape(*sink_rotary, "sink_rotary", rotary, "rotary");
  }

  void copy_blocks(const Tensor& kv_cache, const Tensor& block_mapping) const {
    shape(kv_cache, "kv_cache", "[num_layers, 2, num_blocks, num_kv_heads, block_size, row_size]",
          {kAny, 2, kAny, kAny, kAny, kAny});
    cache_dtype(kv_cache, "kv_cache");
    dense(kv_cache, "kv_cache", 0);
    metadata(block_mapping, "block_mapping", ScalarType::Long, "[n, 2]", {kAny, 2}, kv_cache);
    in_range(block_mapping.size(0), 0, kMaxCount, "pairs of block_mapping");
  }

  // Checks the residual stream and the delta to add to it, both [T, dim].
  void residual(const Tensor& t, const std::optional<Tensor>& delta, int64_t dim = kAny) const {
    shape(t, "residual", "[T, dim]", {kAny, dim});
    in_range(t.size(0), 0, kMaxCount, "tokens of residual");
    in_range(t.size(1), 1, kMaxCount, "dim of residual");
    kv_dtype(t, "residual");
    dense(t, "residual", 0);
    if (!delta) return;
    same_shape(*delta, "delta", t, "residual");
    dtype(*delta, "delta", t.scalar_type());
    dense(*delta, "delta", 0);
    same_device(*delta, "delta", t);
  }

  // Checks the weight of a norm, float32 [dim].
  void norm_weight(const Tensor& t, int64_t dim = kAny) const {
    shape(t, "weight", "[dim]", {dim});
    dtype(t, "weight", ScalarType::Float);
    dense(t, "weight", 0);
  }

  void rms_norm(const Tensor& residual, const std::optional<Tensor>& delta,
                const Tensor& weight) const {
    this->residual(residual, delta);
    norm_weight(weight, residual.size(1));
    same_device(weight, "weight", residual);
  }

  void gate_up(const Tensor& t) const {
    shape(t, "gate_up", "[T, 2 * dim]", {kAny, kAny});
    in_range(t.size(0), 0, kMaxCount, "tokens of gate_up");
    in_range(t.size(1), 0, kMaxCount, "columns of gate_up");
    kv_dtype(t, "gate_up");
    dense(t, "gate_up", 0);
    require(t.size(1) % 2 == 0, "gate_up must have an even number of columns, got ", t.size(1));
  }

 private:
  static bool is_kv_dtype(const Tensor& t) {
    const ScalarType type = t.scalar_type();
    return type == ScalarType::Float || type == ScalarType::BFloat16 ||
           (type == ScalarType::Half && !t.is_cpu());
  }

  template <class Sizes>
  static std::string describe(const Sizes& sizes) {
    std::string text = "[";
    for (auto it = sizes.begin(); it != sizes.end(); ++it) {
      if (it != sizes.begin()) text += ", ";
      text += *it == kAny ? "*" : std::to_string(*it);
    }
    return text + "]";
  }

  static std::string device_of(const Tensor& t) {
    if (t.is_cpu()) return "cpu";
    return (t.is_cuda() ? "cuda:" : "another device:") + std::to_string(t.get_device_index());
  }

  const char* op_;
};

}  // namespace paged_stream
