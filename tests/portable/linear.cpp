// Products of rows with packed weights, dense and quantised.

#include <algorithm>

#include "check.h"
#include "ops/quantized_blocks.h"

namespace paged_stream::portable {
namespace {

struct Sizes {
  int64_t rows, in_features, out_features;

  int64_t num_panels() const { return (out_features + kLinearPanel - 1) / kLinearPanel; }
};
constexpr Sizes kSizes[] = {{1, 64, 16}, {2, 96, 40}, {3, 64, 7}, {13, 192, 33}, {50, 32, 80}};

// Runs a kernel as the launcher does, in parts of a few tiles and two panels.
void run(LinearArgs args, LinearFn linear, int64_t num_panels) {
  for (args.tile_begin = 0; args.tile_begin < args.num_tiles; args.tile_begin = args.tile_end) {
    args.tile_end = std::min(args.tile_begin + kTilesPerItem, args.num_tiles);
    for (args.panel_begin = 0; args.panel_begin < num_panels; args.panel_begin = args.panel_end) {
      args.panel_end = std::min<int64_t>(args.panel_begin + 2, num_panels);
      linear(args);
    }
  }
}

LinearArgs make_args(const Sizes& sizes, int64_t max_tile_rows) {
  LinearArgs args{};
  args.rows = sizes.rows;
  args.num_tiles = (sizes.rows + max_tile_rows - 1) / max_tile_rows;
  args.in_features = sizes.in_features;
  args.out_features = sizes.out_features;
  return args;
}

// Packs [out, in] into [panels, in / step, panel, step], with out padded by zeros.
template <class T>
std::vector<T> pack_dense(const Sizes& sizes, const std::vector<T>& weight) {
  constexpr int64_t kStep = 4 / sizeof(T);
  std::vector<T> packed(sizes.num_panels() * kLinearPanel * sizes.in_features);
  for (int64_t row = 0; row < sizes.out_features; ++row) {
    for (int64_t k = 0; k < sizes.in_features; ++k) {
      const int64_t line = row / kLinearPanel * (sizes.in_features / kStep) + k / kStep;
      packed[(line * kLinearPanel + row % kLinearPanel) * kStep + k % kStep] =
          weight[row * sizes.in_features + k];
    }
  }
  return packed;
}

template <class T>
void check_dense(const Sizes& sizes, bool with_bias, bool float_out, Random& random) {
  const auto x = random.normals<T>(sizes.rows * sizes.in_features);
  const auto weight = random.normals<T>(sizes.out_features * sizes.in_features);
  const auto bias = random.normals<float>(sizes.out_features);
  const auto packed = pack_dense<T>(sizes, weight);
  const DenseKernels& kernels = kGenericKernels.linear[kIndexOf<T>];
  std::vector<char> tiles(x.size() * kernels.packed_size);
  std::vector<float> wide(sizes.rows * sizes.out_features);
  std::vector<bfloat16> narrow(wide.size());
  LinearArgs args = make_args(sizes, kernels.max_tile_rows);
  for (int64_t tile = 0; tile < args.num_tiles; ++tile) {
    const int64_t row = args.tile_row(tile), offset = row * sizes.in_features;
    kernels.pack_rows({reinterpret_cast<const char*>(x.data() + offset),
                       sizes.in_features * static_cast<int64_t>(sizeof(T)),
                       args.tile_row(tile + 1) - row, sizes.in_features,
                       tiles.data() + offset * kernels.packed_size});
  }
  args.x = tiles.data();
  args.weight = packed.data();
  args.bias = with_bias ? bias.data() : nullptr;
  args.float_out = float_out;
  args.out = float_out ? static_cast<void*>(wide.data()) : narrow.data();
  run(args, kernels.linear, sizes.num_panels());
  for (int64_t row = 0; row < sizes.rows; ++row) {
    for (int64_t column = 0; column < sizes.out_features; ++column) {
      double sum = with_bias ? bias[column] : 0, magnitude = std::abs(sum);
      for (int64_t k = 0; k < sizes.in_features; ++k) {
        const double product = double{to_float(x[row * sizes.in_features + k])} *
                               to_float(weight[column * sizes.in_features + k]);
        sum += product;
        magnitude += std::abs(product);
      }
      const int64_t at = row * sizes.out_features + column;
      const double result = float_out ? wide[at] : to_float(narrow[at]);
      const double rounding = float_out ? 0 : kRounding<bfloat16> * std::abs(sum);
      expect_near("linear", result, sum, 1e-6 * magnitude + rounding);
    }
  }
}

// Returns a finite, normal float16 of moderate size, and its value.
uint16_t random_half(Random& random, bool may_be_negative, double& value) {
  const int mantissa = random.below(1024), exponent = 10 + random.below(5);
  const bool negative = may_be_negative && random.below(2) == 1;
  value = std::ldexp(1024 + mantissa, exponent - 25) * (negative ? -1 : 1);
  return static_cast<uint16_t>(negative << 15 | exponent << 10 | mantissa);
}

// A weight packed in groups, and its exact values.
struct GroupWeight {
  std::vector<uint8_t> packed;
  std::vector<double> values;  // [out, in]
};

// Fills a row's block with random numbers, and sets the values that they stand for.
void fill_block(GroupFormat format, Block& block, double* values, Random& random) {
  const GroupLayout layout = group_layout(format);
  double halves[2] = {0, 0};
  for (int i = 0; i < layout.halves(); ++i) {
    const uint16_t bits = random_half(random, true, halves[i]);
    std::memcpy(block.halves + 2 * i, &bits, 2);
  }
  for (uint8_t& byte : block.scale_bytes) byte = static_cast<uint8_t>(random.below(256));
  for (uint8_t& byte : block.min_bytes) byte = static_cast<uint8_t>(random.below(128));
  for (int k = 0; k < layout.step_size(); ++k) {
    int code = random.below(1 << layout.bits);
    block.codes[k] = static_cast<uint8_t>(code);
    if (layout.has_table) code = kCodeTable[code];
    const int group = k / kGroupSize;
    const uint8_t scale_byte = block.scale_bytes[k * layout.scale_bytes / kGroupSize];
    double scale = halves[0], min = 0;
    switch (layout.min) {
      case MinKind::kMinHalf:
        min = -halves[1];
        break;
      case MinKind::kMinByte:
        min = halves[1] * block.min_bytes[group];
        break;
      case MinKind::kMinNibble:
        min = halves[1] * (scale_byte / 16);
        scale *= scale_byte % 16;
        break;
      case MinKind::kZeroByte:
        min = halves[0] * block.min_bytes[group];
        break;
      default:
        break;
    }
    if (layout.scale_bytes > 0 && layout.min != MinKind::kMinNibble) {
      scale *= static_cast<int8_t>(scale_byte);
    }
    values[k] = scale * (code - layout.zero_point) - min;
  }
}

GroupWeight make_groups(const Sizes& sizes, GroupFormat format, Random& random) {
  const GroupLayout layout = group_layout(format);
  const int64_t num_steps = sizes.in_features / layout.step_size();
  const int64_t step_bytes = kLinearPanel * layout.step_bytes();
  GroupWeight weight;
  weight.packed.resize(sizes.num_panels() * num_steps * step_bytes);
  weight.values.resize(sizes.out_features * sizes.in_features);
  for (int64_t row = 0; row < sizes.out_features; ++row) {
    for (int64_t b = 0; b < num_steps; ++b) {
      double* values = weight.values.data() + row * sizes.in_features + b * layout.step_size();
      Block block{};
      fill_block(format, block, values, random);
      uint8_t* step = weight.packed.data() + (row / kLinearPanel * num_steps + b) * step_bytes;
      pack_block(layout, block, row % kLinearPanel, step);
      float unpacked[256];
      unpack_values(layout, step, row % kLinearPanel, unpacked);
      for (int k = 0; k < layout.step_size(); ++k) {
        expect_near("unpacked", unpacked[k], values[k], 1e-6 * std::abs(values[k]) + 1e-6);
      }
    }
  }
  return weight;
}

template <class T>
void check_quantized(Sizes sizes, GroupFormat format, Random& random) {
  const GroupLayout layout = group_layout(format);
  sizes.in_features *= layout.groups;
  const GroupWeight weight = make_groups(sizes, format, random);
  const auto x = random.normals<T>(sizes.rows * sizes.in_features);
  const int64_t row_bytes = sizes.in_features / kGroupSize * layout.quantized_bytes();
  std::vector<char> tiles(sizes.rows * row_bytes);
  std::vector<float> out(sizes.rows * sizes.out_features);
  LinearArgs args = make_args(sizes, kGenericQuantizedKernels.max_tile_rows);
  for (int64_t tile = 0; tile < args.num_tiles; ++tile) {
    const int64_t row = args.tile_row(tile);
    kGenericQuantizedKernels.quantize[kIndexOf<T>](
        {x.data() + row * sizes.in_features, sizes.in_features, args.tile_row(tile + 1) - row,
         sizes.in_features, format, tiles.data() + row * row_bytes});
  }
  args.x = tiles.data();
  args.weight = weight.packed.data();
  args.float_out = true;
  args.out = out.data();
  run(args, kGenericQuantizedKernels.linear[static_cast<int>(format)], sizes.num_panels());
  for (int64_t row = 0; row < sizes.rows; ++row) {
    for (int64_t column = 0; column < sizes.out_features; ++column) {
      double sum = 0, tolerance = 0;
      for (int64_t first = 0; first < sizes.in_features; first += kGroupSize) {
        double largest = 0, magnitude = 0;
        for (int64_t k = first; k < first + kGroupSize; ++k) {
          const double value = to_float(x[row * sizes.in_features + k]);
          sum += value * weight.values[column * sizes.in_features + k];
          largest = std::max(largest, std::abs(value));
          magnitude += std::abs(weight.values[column * sizes.in_features + k]);
        }
        // Each element of x is rounded to a multiple of the group's largest one over 127 * 128.
        tolerance += magnitude * largest * (0.5 / (127 * 128) + 1e-6);
      }
      expect_near("quantized linear", out[row * sizes.out_features + column], sum, tolerance);
    }
  }
}

}  // namespace

void check_linear() {
  Random random(2);
  for (const Sizes& sizes : kSizes) {
    for (const bool with_bias : {false, true}) {
      check_dense<float>(sizes, with_bias, true, random);
      check_dense<bfloat16>(sizes, with_bias, true, random);
      check_dense<bfloat16>(sizes, with_bias, false, random);
    }
    for (int format = 0; format < kNumGroupFormats; ++format) {
      check_quantized<float>(sizes, static_cast<GroupFormat>(format), random);
      check_quantized<bfloat16>(sizes, static_cast<GroupFormat>(format), random);
    }
  }
}

}  // namespace paged_stream::portable
