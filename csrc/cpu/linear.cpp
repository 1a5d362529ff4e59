// y = x W^T + b with a weight that was packed once: validation, packing, work sharing.

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cstring>

#include "checks.h"
#include "kernels.h"
#include "parallel.h"

namespace paged_stream {
namespace {

constexpr int64_t kMinWorkPerThread = 1 << 16;  // multiply-adds
// Tiles that one item takes, so that its part of x stays in the second-level cache.
constexpr int64_t kTilesPerItem = 8;

constexpr int64_t kMinPackPerThread = 1 << 15;  // elements of x

// Consecutive k that share a 32-bit lane of the packed weight.
int64_t k_per_lane(const Tensor& t) { return 4 / t.element_size(); }

// [out, in] to [panels, in / step, panel, step], out padded to whole panels with zeros.
Tensor pack_linear_weight(Tensor weight) {
  constexpr Checker check("pack_linear_weight");
  check.shape(weight, "weight", "[out_features, in_features]", {kAny, kAny});
  check.kv_dtype(weight, "weight");
  check.dense(weight, "weight", 0);
  const int64_t out_features = weight.size(0), in_features = weight.size(1);
  const int64_t step = k_per_lane(weight), steps = in_features / step;
  check.require(
      in_features > 0 && in_features % step == 0,
      "in_features must be positive, and even for BFloat16, got " + std::to_string(in_features));
  const int64_t panels = (out_features + kLinearPanel - 1) / kLinearPanel;
  Tensor packed = torch::stable::new_zeros(weight, {panels, steps, kLinearPanel, step});
  const auto* src = static_cast<const char*>(weight.data_ptr());
  auto* dst = static_cast<char*>(packed.data_ptr());
  torch::stable::parallel_for(0, panels, 1, [&](int64_t begin, int64_t end) {
    for (int64_t panel = begin; panel < end; ++panel) {
      const int64_t columns = std::min<int64_t>(kLinearPanel, out_features - panel * kLinearPanel);
      for (int64_t c = 0; c < columns; ++c) {
        const char* row = src + (panel * kLinearPanel + c) * in_features * weight.element_size();
        for (int64_t k = 0; k < steps; ++k) {
          std::memcpy(dst + ((panel * steps + k) * kLinearPanel + c) * 4, row + k * 4, 4);
        }
      }
    }
  });
  return packed;
}

float to_float(float x) { return x; }
float to_float(bfloat16 x) {
  const uint32_t bits = uint32_t{x.bits} << 16;
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

// Widens x and brings it into the layout of tiles.
template <class T>
void pack_input(const Tensor& input, const LinearArgs& args, int64_t num_tiles, float* packed) {
  const int64_t columns = args.in_features, stride = input.stride(0);
  const T* data = static_cast<const T*>(input.data_ptr());
  const int64_t grain = std::max<int64_t>(1, kMinPackPerThread * num_tiles / input.numel());
  torch::stable::parallel_for(0, num_tiles, grain, [&](int64_t begin, int64_t end) {
    for (int64_t tile = begin; tile < end; ++tile) {
      const int64_t row = args.tile_row(tile), rows = args.tile_row(tile + 1) - row;
      const T* from = data + row * stride;
      float* to = packed + row * columns;
      for (int64_t k = 0; k < columns; ++k) {
        for (int64_t r = 0; r < rows; ++r) *to++ = to_float(from[r * stride + k]);
      }
    }
  });
}

template <class T>
void pack_bias(const Tensor& bias, float* packed) {
  const T* data = static_cast<const T*>(bias.data_ptr());
  for (int64_t i = 0; i < bias.numel(); ++i) packed[i] = to_float(data[i]);
}

Tensor linear(Tensor input, Tensor packed_weight, std::optional<Tensor> bias, int64_t out_features,
              bool float_output) {
  constexpr Checker check("linear");
  check.kv_dtype(packed_weight, "packed_weight");
  const int64_t step = k_per_lane(packed_weight);
  const int64_t panels = (out_features + kLinearPanel - 1) / kLinearPanel;
  check.shape(packed_weight, "packed_weight", "[panels, in_features / step, 16, step]",
              {panels, kAny, kLinearPanel, step});
  check.dense(packed_weight, "packed_weight", 0);
  const int64_t in_features = packed_weight.size(1) * step;
  check.shape(input, "input", "[T, in_features]", {kAny, in_features});
  check.dtype(input, "input", packed_weight.scalar_type());
  check.dense(input, "input", 1);
  if (bias) {
    check.shape(*bias, "bias", "[out_features]", {out_features});
    check.dtype(*bias, "bias", packed_weight.scalar_type());
    check.dense(*bias, "bias", 0);
  }
  const int64_t rows = input.size(0);
  const bool is_float = input.scalar_type() == ScalarType::Float;
  const ScalarType out_type = float_output ? ScalarType::Float : input.scalar_type();
  Tensor out = torch::stable::new_empty(input, {rows, out_features}, out_type);
  if (rows == 0) return out;

  const Kernels& isa = kernels();
  const LinearFn run = isa.linear[static_cast<int>(is_float ? DType::kFloat32 : DType::kBFloat16)];
  LinearArgs args{};
  args.weight = packed_weight.data_ptr();
  args.out = out.data_ptr();
  args.rows = rows;
  args.tile_rows = isa.linear_tile_rows;
  args.in_features = in_features;
  args.out_features = out_features;
  args.float_out = float_output || is_float;
  static thread_local GrowingBuffer<float> packed_input, wide_bias;
  float* x = packed_input.get(rows * in_features);
  const int64_t num_tiles = (rows + args.tile_rows - 1) / args.tile_rows;
  (is_float ? pack_input<float> : pack_input<bfloat16>)(input, args, num_tiles, x);
  args.x = x;
  if (bias) {
    float* wide = wide_bias.get(out_features);
    (is_float ? pack_bias<float> : pack_bias<bfloat16>)(*bias, wide);
    args.bias = wide;
  }

  // Four panels at a time read memory best; fewer share a small weight more evenly.
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t group = panels >= 64 * threads ? 4 : 2;
  const int64_t groups = (panels + group - 1) / group;
  const int64_t tile_groups = (num_tiles + kTilesPerItem - 1) / kTilesPerItem;
  const int64_t work = rows * in_features * out_features;
  for_each_item(groups * tile_groups, work, kMinWorkPerThread, [&](int64_t item) {
    LinearArgs part = args;
    part.panel_begin = item % groups * group;
    part.panel_end = std::min(part.panel_begin + group, panels);
    part.tile_begin = item / groups * kTilesPerItem;
    part.tile_end = std::min(part.tile_begin + kTilesPerItem, num_tiles);
    run(part);
  });
  return out;
}

}  // namespace
}  // namespace paged_stream

STABLE_TORCH_LIBRARY_IMPL(paged_stream, CPU, m) {
  m.impl("pack_linear_weight", TORCH_BOX(&paged_stream::pack_linear_weight));
  m.impl("linear", TORCH_BOX(&paged_stream::linear));
}
