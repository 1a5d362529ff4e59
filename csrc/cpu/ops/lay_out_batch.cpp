// Where a step's tokens sit and go, before any layer runs.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "checks.h"
#include "decode_rows.h"
#include "sink_window.h"

namespace paged_stream {
namespace {

// What lay_out_batch is told about its sequences, B of each.
struct Sequences {
  const std::vector<int64_t>&lengths, &starts, &num_sink_tokens, &window_size, &window_floor,
      &ring_blocks, &row_lengths;

  size_t size() const { return lengths.size(); }

  void validate(const Checker& check) const {
    for (const auto* values :
         {&starts, &num_sink_tokens, &window_size, &window_floor, &ring_blocks, &row_lengths}) {
      check.require(values->size() == size(), "all lists must have the length of lengths");
    }
    for (size_t b = 0; b < size(); ++b) {
      check.require(lengths[b] >= 0 && starts[b] >= 0 && ring_blocks[b] >= 1 && row_lengths[b] >= 1,
                    "sequence ", b,
                    " must have a length and a start of at least 0, and at least one column");
    }
  }
};

using Batch = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor,
                         Tensor, Tensor, bool>;

// Copies values into a tensor of their own.
template <class T>
Tensor tensor_of(const std::vector<int64_t>& values, ScalarType type, const Tensor& like) {
  Tensor tensor = torch::stable::new_empty(like, {static_cast<int64_t>(values.size())}, type);
  std::copy(values.begin(), values.end(), tensor.mutable_data_ptr<T>());
  return tensor;
}

Batch lay_out_batch(Tensor token_ids, Tensor block_rows, int64_t block_size,
                    std::vector<int64_t> lengths, std::vector<int64_t> starts,
                    std::vector<int64_t> num_sink_tokens, std::vector<int64_t> window_size,
                    std::vector<int64_t> window_floor, std::vector<int64_t> ring_blocks,
                    std::vector<int64_t> row_lengths) {
  constexpr Checker check("lay_out_batch");
  const Sequences of{lengths,      starts,      num_sink_tokens, window_size,
                     window_floor, ring_blocks, row_lengths};
  of.validate(check);
  check.require(block_size >= 1, "block_size must be at least 1");
  const int64_t num_sequences = static_cast<int64_t>(of.size());
  std::vector<int64_t> begins(1, 0), seq_lens;
  int64_t num_entries = 0, width = 0;
  for (size_t b = 0; b < of.size(); ++b) {
    begins.push_back(begins.back() + lengths[b]);
    seq_lens.push_back(starts[b] + lengths[b]);
    num_entries += row_lengths[b];
    width = std::max(width, row_lengths[b]);
  }
  const int64_t num_tokens = begins.back();
  check.metadata(token_ids, "token_ids", ScalarType::Int, "[sum of lengths]", {num_tokens},
                 token_ids);
  check.metadata(block_rows, "block_rows", ScalarType::Int, "[sum of row_lengths]", {num_entries},
                 token_ids);

  const auto make = [&](std::initializer_list<int64_t> shape, ScalarType type) {
    return torch::stable::new_empty(token_ids, shape, type);
  };
  Tensor ids = make({num_tokens}, ScalarType::Long);
  std::copy_n(token_ids.const_data_ptr<int32_t>(), num_tokens, ids.mutable_data_ptr<int64_t>());
  Tensor block_table = make({num_sequences, width}, ScalarType::Int);
  Tensor slot_mapping = make({num_tokens}, ScalarType::Long);
  Tensor positions = make({num_tokens}, ScalarType::Long);
  Tensor sink_positions = make({num_tokens}, ScalarType::Long);
  auto* out_row = block_table.mutable_data_ptr<int32_t>();
  auto* slot = slot_mapping.mutable_data_ptr<int64_t>();
  auto* position_at = positions.mutable_data_ptr<int64_t>();
  auto* sink_position_at = sink_positions.mutable_data_ptr<int64_t>();
  const int32_t* row = block_rows.const_data_ptr<int32_t>();
  bool has_gap = false;
  for (size_t b = 0; b < of.size(); ++b) {
    const SinkWindow window{num_sink_tokens[b], window_size[b], window_floor[b]};
    std::fill(std::copy_n(row, row_lengths[b], out_row), out_row + width, -1);
    for (int64_t position = starts[b]; position < seq_lens[b]; ++position) {
      const int64_t column = window.column(position / block_size, ring_blocks[b], block_size);
      check.require(column < row_lengths[b], "position ", position, " is in column ", column,
                    " of a row of ", row_lengths[b]);
      *slot++ = slot_of(position, row[column], block_size);
      *position_at++ = position;
      *sink_position_at = window.sink_position(position);
      has_gap |= *sink_position_at++ < position;
    }
    row += row_lengths[b];
    out_row += width;
  }
  return {ids,
          tensor_of<int32_t>(begins, ScalarType::Int, ids),
          tensor_of<int64_t>(seq_lens, ScalarType::Long, ids),
          tensor_of<int32_t>(num_sink_tokens, ScalarType::Int, ids),
          tensor_of<int32_t>(window_size, ScalarType::Int, ids),
          tensor_of<int64_t>(window_floor, ScalarType::Long, ids),
          tensor_of<int32_t>(ring_blocks, ScalarType::Int, ids),
          block_table,
          slot_mapping,
          positions,
          sink_positions,
          has_gap};
}

}  // namespace
}  // namespace paged_stream

STABLE_TORCH_LIBRARY_IMPL(paged_stream, CPU, m) {
  m.impl("lay_out_batch", TORCH_BOX(&paged_stream::lay_out_batch));
}
