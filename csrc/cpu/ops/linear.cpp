// y = x W^T + b with a packed weight: validation, the layout of x, work sharing.

#include "ops/linear.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <bit>
#include <utility>

#include "dtype.h"
#include "isa/kernel_table.h"
#include "threads/parallel.h"

namespace paged_stream {
namespace {

constexpr int64_t kMinWorkPerThread = 1 << 16;  // multiply-adds
constexpr int64_t kMinPackPerThread = 1 << 15;  // elements of x

// Calls pack(first row, number of rows) for every tile, in parallel if tiles are large.
template <class Pack>
void for_each_tile(const LinearArgs& args, const Pack& pack) {
  const int64_t elements = args.rows * args.in_features;
  const int64_t grain = std::max<int64_t>(1, kMinPackPerThread * args.num_tiles / elements);
  for_each_range(args.num_tiles, grain, [&](int64_t begin, int64_t end) {
    for (int64_t tile = begin; tile < end; ++tile) {
      pack(args.tile_row(tile), args.tile_row(tile + 1) - args.tile_row(tile));
    }
  });
}

int64_t element_size(DType dtype) { return dtype == DType::kFloat32 ? 4 : 2; }

const void* pack_dense(const LinearInput& input, const LinearArgs& args,
                       const DenseKernels& dense) {
  static thread_local GrowingBuffer<char> buffer;
  const int64_t row_bytes = args.in_features * dense.packed_size;
  const int64_t stride = input.stride * element_size(input.dtype);
  char* packed = buffer.get(args.rows * row_bytes);
  for_each_tile(args, [&](int64_t row, int64_t rows) {
    dense.pack_rows({static_cast<const char*>(input.data) + row * stride, stride, rows,
                     args.in_features, packed + row * row_bytes});
  });
  return packed;
}

const void* pack_quantized(const LinearInput& input, const LinearArgs& args, GroupFormat format) {
  static thread_local GrowingBuffer<char> buffer;
  const int64_t row_bytes = args.in_features / kGroupSize * group_layout(format).quantized_bytes();
  char* packed = buffer.get(args.rows * row_bytes);
  const QuantizeFn quantize = isa().quantized->quantize[static_cast<int>(input.dtype)];
  for_each_tile(args, [&](int64_t row, int64_t rows) {
    const int64_t offset = row * input.stride * element_size(input.dtype);
    quantize({static_cast<const char*>(input.data) + offset, input.stride, rows, args.in_features,
              format, packed + row * row_bytes});
  });
  return packed;
}

const float* widen_bias(const void* bias, DType dtype, int64_t size) {
  if (bias == nullptr || dtype == DType::kFloat32) return static_cast<const float*>(bias);
  static thread_local GrowingBuffer<float> buffer;
  float* wide = buffer.get(size);
  const auto* narrow = static_cast<const bfloat16*>(bias);
  for (int64_t i = 0; i < size; ++i) wide[i] = std::bit_cast<float>(narrow[i].bits * 0x10000u);
  return wide;
}

// Shares panels [first, last) and tiles among threads.
void run_items(const LinearArgs& args, LinearFn run, int64_t first, int64_t last,
               int64_t max_tiles) {
  const int64_t panels = last - first;
  // Groups of four panels read memory fastest; smaller groups share a small weight more evenly.
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t group = panels >= 64 * threads ? 4 : 2;
  const int64_t groups = (panels + group - 1) / group;
  const int64_t tile_groups = (args.num_tiles + max_tiles - 1) / max_tiles;
  const int64_t work = args.rows * args.in_features * panels * kLinearPanel;
  for_each_item(groups * tile_groups, work, kMinWorkPerThread, [&](int64_t item) {
    LinearArgs part = args;
    part.panel_begin = first + item % groups * group;
    part.panel_end = std::min(part.panel_begin + group, last);
    part.tile_begin = item / groups * max_tiles;
    part.tile_end = std::min(part.tile_begin + max_tiles, args.num_tiles);
    run(part);
  });
}

// Formats that multiply inputs of the same layout.
bool share_inputs(const GroupLayout& a, const GroupLayout& b) {
  return a.subs() == b.subs() && a.zero_point == b.zero_point && a.has_min() == b.has_min();
}

void run_quantized(const LinearInput& input, const PackedWeight& weight, LinearArgs args) {
  const QuantizedKernels& kernels = *isa().quantized;
  args.num_tiles = (args.rows + kernels.max_tile_rows - 1) / kernels.max_tile_rows;
  const QuantizedPart* before = nullptr;
  for (const QuantizedPart& part : weight.parts) {
    if (before == nullptr || !share_inputs(before->layout(), part.layout())) {
      args.x = pack_quantized(input, args, part.format);
    }
    before = &part;
    // Panels are counted over all parts, as the columns of the result are.
    const int64_t first = part.first_row / kLinearPanel;
    args.weight = static_cast<const char*>(weight.data) + part.offset - first * part.panel_bytes();
    run_items(args, kernels.linear[static_cast<int>(part.format)], first,
              first + num_panels(part.rows), kTilesPerItem);
  }
}

Tensor linear(Tensor input, Tensor packed_weight, std::optional<Tensor> bias, int64_t out_features,
              bool float_output) {
  constexpr Checker check("linear");
  check.defined(input, "input");
  const ScalarType dtype = input.scalar_type();
  const auto weight = PackedWeight::read(check, packed_weight, bias, out_features, dtype);
  check.shape(input, "input", "[T, in_features]", {kAny, weight.in_features});
  check.in_range(input.size(0), 0, kMaxCount, "tokens of input");
  check.dense(input, "input", 1);
  const ScalarType out_type = float_output ? ScalarType::Float : dtype;
  Tensor out = torch::stable::new_empty(input, {input.size(0), out_features}, out_type);
  run_linear({input.data_ptr(), input.size(0), row_stride(input), dtype_of(input)}, weight,
             out.data_ptr(), float_output);
  return out;
}

}  // namespace

PackedWeight PackedWeight::read(const Checker& check, const Tensor& packed_weight,
                                const std::optional<Tensor>& bias, int64_t out_features,
                                ScalarType dtype) {
  check.defined(packed_weight, "packed_weight");
  check.in_range(out_features, 1, kMaxCount, "out_features");
  const int64_t panels = num_panels(out_features);
  PackedWeight weight{packed_weight.data_ptr(), nullptr, 0, out_features, {}};
  if (packed_weight.scalar_type() == ScalarType::Byte) {
    check.require(dtype == ScalarType::Float || dtype == ScalarType::BFloat16,
                  "input must be Float or BFloat16, got ", torch::headeronly::toString(dtype));
    QuantizedWeight quantized = QuantizedWeight::read(check, packed_weight);
    check.require(quantized.out_features == out_features, "packed_weight must have ", out_features,
                  " rows, got ", quantized.out_features);
    weight.in_features = quantized.in_features;
    weight.parts = std::move(quantized.parts);
  } else {
    check.kv_dtype(packed_weight, "packed_weight");
    const int64_t step = 4 / packed_weight.element_size();
    check.shape(packed_weight, "packed_weight", "[panels, in_features / step, 16, step]",
                {panels, kAny, kLinearPanel, step});
    check.dtype_is(dtype, "input", packed_weight.scalar_type());
    check.in_range(packed_weight.size(1), 1, kMaxCount / step, "steps of packed_weight");
    weight.in_features = packed_weight.size(1) * step;
  }
  check.dense(packed_weight, "packed_weight", 0);
  if (bias) {
    check.shape(*bias, "bias", "[out_features]", {out_features});
    check.same_device(*bias, "bias", packed_weight);
    check.dtype(*bias, "bias", dtype);
    check.dense(*bias, "bias", 0);
    weight.bias = bias->data_ptr();
  }
  return weight;
}

void run_linear(const LinearInput& input, const PackedWeight& weight, void* out, bool float_out) {
  if (input.rows == 0) return;
  LinearArgs args{};
  args.weight = weight.data;
  args.bias = widen_bias(weight.bias, input.dtype, weight.out_features);
  args.out = out;
  args.rows = input.rows;
  args.in_features = weight.in_features;
  args.out_features = weight.out_features;
  args.float_out = float_out || input.dtype == DType::kFloat32;
  if (!weight.parts.empty()) return run_quantized(input, weight, args);
  const DenseKernels& dense = kernels().linear[static_cast<int>(input.dtype)];
  args.num_tiles = (args.rows + dense.max_tile_rows - 1) / dense.max_tile_rows;
  args.x = pack_dense(input, args, dense);
  run_items(args, dense.linear, 0, num_panels(args.out_features), dense.max_tiles);
}

}  // namespace paged_stream

STABLE_TORCH_LIBRARY_IMPL(paged_stream, CPU, m) {
  m.impl("linear", TORCH_BOX(&paged_stream::linear));
}
