// Reads and creates a step's batch. Ops take it as one `Tensor[]`, in the order of the fields of
// BatchTensors in paged_stream/ops/batch.py. No other file depends on that order.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <initializer_list>
#include <type_traits>
#include <vector>

#include "batch_view.h"
#include "checks.h"

namespace paged_stream {

using BatchTensors = std::vector<Tensor>;
constexpr size_t kNumBatchTensors = 11;

// Walks the fields in order and checks the dtype, shape and device of each. Reads no values.
class BatchReader {
 public:
  // like: a tensor on the batch's device.
  BatchReader(const Checker& check, const BatchTensors& tensors, const Tensor& like)
      : check_(check), tensors_(tensors), like_(like) {
    check.require(tensors.size() == kNumBatchTensors, "batch must have ", kNumBatchTensors,
                  " tensors, got ", tensors.size());
  }

  // T's pointee decides the dtype. `dense_from`: the first dimension that must be contiguous.
  template <class T>
  void read(T*& field, const char* name, const char* layout, std::initializer_list<int64_t> shape,
            int64_t dense_from = 0) {
    const Tensor& t = tensors_[next_++];
    check_.shape(t, name, layout, shape);
    check_.dtype(t, name, sizeof(T) == 8 ? ScalarType::Long : ScalarType::Int);
    check_.dense(t, name, dense_from);
    check_.same_device(t, name, like_);
    if constexpr (std::is_const_v<T>) {
      field = t.const_data_ptr<std::remove_const_t<T>>();
    } else {
      field = t.mutable_data_ptr<T>();
    }
  }

  const Tensor& last() const { return tensors_[next_ - 1]; }

 private:
  const Checker& check_;
  const BatchTensors& tensors_;
  const Tensor& like_;
  size_t next_ = 0;
};

// View: MutableBatch for an op that writes to the batch. num_tokens: T of the op's other arguments.
template <class View = Batch>
View read_batch(const Checker& check, const BatchTensors& tensors, const Tensor& like,
                int64_t num_tokens) {
  BatchReader reader(check, tensors, like);
  View batch{};
  check.in_range(num_tokens, 0, kMaxCount, "the number of tokens");
  const int64_t t = batch.num_tokens = num_tokens;
  reader.read(batch.token_ids, "token_ids", "[T]", {t});
  reader.read(batch.positions, "positions", "[T]", {t});
  reader.read(batch.sink_positions, "sink_positions", "[T]", {t});
  reader.read(batch.slot_mapping, "slot_mapping", "[T]", {t});
  reader.read(batch.block_table, "block_table", "[B, width]", {kAny, kAny}, 1);
  const Tensor& table = reader.last();
  batch.table_width = table.size(1);
  batch.table_stride = row_stride(table);
  const int64_t b = batch.num_sequences = table.size(0);
  check.in_range(b, 0, kMaxCount, "the number of sequences");
  reader.read(batch.query_start_loc, "query_start_loc", "[B + 1]", {b + 1});
  reader.read(batch.seq_lens, "seq_lens", "[B]", {b});
  reader.read(batch.num_sink_tokens, "num_sink_tokens", "[B]", {b});
  reader.read(batch.window_size, "window_size", "[B]", {b});
  reader.read(batch.window_floor, "window_floor", "[B]", {b});
  reader.read(batch.ring_blocks, "ring_blocks", "[B]", {b});
  return batch;
}

// Returns an uninitialised batch of T tokens and B sequences whose block table has `width` columns.
inline BatchTensors new_batch(const Tensor& like, int64_t t, int64_t b, int64_t width) {
  constexpr ScalarType kLong = ScalarType::Long, kInt = ScalarType::Int;
  const auto make = [&](std::initializer_list<int64_t> shape, ScalarType type) {
    return torch::stable::new_empty(like, shape, type);
  };
  return {make({t}, kLong),       make({t}, kLong),    make({t}, kLong), make({t}, kLong),
          make({b, width}, kInt), make({b + 1}, kInt), make({b}, kLong), make({b}, kInt),
          make({b}, kInt),        make({b}, kLong),    make({b}, kInt)};
}

}  // namespace paged_stream
