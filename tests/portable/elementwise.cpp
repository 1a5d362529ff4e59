// Rotary embedding, rows of an int8 cache, RMS norm, gated activation.

#include <algorithm>

#include "check.h"

namespace paged_stream::portable {
namespace {

struct RotaryCase {
  int head_dim, rotary_dim;
  bool interleaved;

  std::string name(const char* kind) const {
    return std::string(kind) + " of " + std::to_string(rotary_dim) + "/" +
           std::to_string(head_dim) + (interleaved ? " interleaved" : "");
  }
};

constexpr RotaryCase kRotaryCases[] = {
    {64, 64, false},  {64, 64, true},   {80, 20, false}, {80, 20, true},
    {128, 96, false}, {256, 256, true}, {64, 0, false},
};
constexpr int kHeads = 3;

// Returns rotary_dim / 2 cosines, then as many sines.
std::vector<float> make_angles(const RotaryCase& c, Random& random) {
  const int half = c.rotary_dim / 2;
  std::vector<float> angles(2 * half);
  for (int i = 0; i < half; ++i) {
    const double angle = 6.28 * random.uniform();
    angles[i] = static_cast<float>(std::cos(angle));
    angles[half + i] = static_cast<float>(std::sin(angle));
  }
  return angles;
}

std::vector<double> rotated(const RotaryCase& c, const std::vector<double>& row,
                            const std::vector<float>& angles) {
  std::vector<double> result = row;
  const int half = c.rotary_dim / 2;
  for (int i = 0; i < half; ++i) {
    const int first = c.interleaved ? 2 * i : i, second = c.interleaved ? 2 * i + 1 : half + i;
    const double cosine = angles[i], sine = angles[half + i];
    result[first] = row[first] * cosine - row[second] * sine;
    result[second] = row[second] * cosine + row[first] * sine;
  }
  return result;
}

template <class T>
void check_rotate(const RotaryCase& c, bool in_place, Random& random) {
  const std::vector<float> angles = make_angles(c, random);
  const std::vector<T> from = random.normals<T>(kHeads * c.head_dim);
  std::vector<T> to = in_place ? from : std::vector<T>(from.size());
  const void* src = in_place ? to.data() : from.data();
  kGenericKernels.rotate(kDTypeOf<T>,
                         kDTypeOf<T>)({src, to.data(), kHeads, c.head_dim, c.head_dim, c.head_dim,
                                       angles.data(), c.rotary_dim, c.interleaved});
  for (int head = 0; head < kHeads; ++head) {
    std::vector<double> row(c.head_dim);
    for (int d = 0; d < c.head_dim; ++d) row[d] = to_float(from[head * c.head_dim + d]);
    const std::vector<double> expected = rotated(c, row, angles);
    for (int d = 0; d < c.head_dim; ++d) {
      const double tolerance = kRounding<T> * std::abs(expected[d]) + 1e-6;
      expect_near(c.name("rotate"), to_float(to[head * c.head_dim + d]), expected[d], tolerance);
    }
  }
}

float scale_of(const int8_t* row, int head_dim) {
  float scale;
  std::memcpy(&scale, row + head_dim, sizeof(scale));
  return scale;
}

// Compares a row of an int8 cache with the values stored there.
void check_quantized_row(const std::string& what, const int8_t* row,
                         const std::vector<double>& expected) {
  const int head_dim = static_cast<int>(expected.size());
  const float scale = scale_of(row, head_dim);
  double largest = 0;
  for (double x : expected) largest = std::max(largest, std::abs(x));
  expect_near(what + ", scale", scale, largest / 127, 1e-6 * largest);
  for (int d = 0; d < head_dim; ++d) {
    expect_near(what, row[d] * scale, expected[d], 0.501 * scale);
  }
}

template <class T>
void check_quantizing_rotate(const RotaryCase& c, Random& random) {
  const int row_size = c.head_dim + kScaleBytes;
  const std::vector<float> angles = make_angles(c, random);
  const std::vector<T> from = random.normals<T>(kHeads * c.head_dim);
  std::vector<int8_t> stored(kHeads * row_size), turned(stored.size());
  kGenericKernels.rotate(kDTypeOf<T>,
                         DType::kInt8)({from.data(), stored.data(), kHeads, c.head_dim, row_size,
                                        c.head_dim, angles.data(), c.rotary_dim, c.interleaved});
  kGenericKernels.rotate(DType::kInt8,
                         DType::kInt8)({stored.data(), turned.data(), kHeads, row_size, row_size,
                                        c.head_dim, angles.data(), c.rotary_dim, c.interleaved});
  for (int head = 0; head < kHeads; ++head) {
    const int8_t* row = stored.data() + head * row_size;
    const float scale = scale_of(row, c.head_dim);
    std::vector<double> exact(c.head_dim), once(c.head_dim);
    for (int d = 0; d < c.head_dim; ++d) {
      exact[d] = to_float(from[head * c.head_dim + d]);
      once[d] = row[d] * scale;
    }
    check_quantized_row(c.name("quantize"), row, rotated(c, exact, angles));
    check_quantized_row(c.name("turn int8"), turned.data() + head * row_size,
                        rotated(c, once, angles));
  }
}

template <class T>
void check_rms_norm(int64_t rows, int64_t dim, bool with_delta, Random& random) {
  const std::vector<T> before = random.normals<T>(rows * dim),
                       delta = random.normals<T>(rows * dim);
  const std::vector<float> weight = random.normals<float>(dim);
  std::vector<T> residual = before, out(rows * dim);
  const float eps = 1e-5f;
  kGenericKernels.rms_norm[kIndexOf<T>](
      {residual.data(), with_delta ? delta.data() : nullptr, weight.data(), out.data(), dim, eps},
      0, rows);
  for (int64_t row = 0; row < rows; ++row) {
    double squares = 0;
    for (int64_t i = row * dim; i < (row + 1) * dim; ++i) {
      const double sum = to_float(before[i]) + (with_delta ? to_float(delta[i]) : 0.0);
      const double x = to_float(residual[i]);
      expect_near("residual", x, sum, with_delta ? kRounding<T> * std::abs(sum) : 0);
      squares += x * x;
    }
    const double scale = 1 / std::sqrt(squares / static_cast<double>(dim) + eps);
    for (int64_t i = 0; i < dim; ++i) {
      const double expected = to_float(residual[row * dim + i]) * scale * weight[i];
      const double tolerance = (kRounding<T> + 1e-6) * std::abs(expected);
      expect_near("rms_norm", to_float(out[row * dim + i]), expected, tolerance);
    }
  }
}

template <class T>
void check_silu(int64_t rows, int64_t dim, Random& random) {
  std::vector<T> gate_up = random.normals<T>(rows * 2 * dim), out(rows * dim);
  for (int64_t i = 0; i < 2 * dim; i += 7) {  // include values where e^-x is far from 1
    gate_up[i] = from_float<T>(20 * to_float(gate_up[i]));
  }
  kGenericKernels.silu_and_mul[kIndexOf<T>](gate_up.data(), out.data(), dim, 0, rows);
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t i = 0; i < dim; ++i) {
      const double gate = to_float(gate_up[row * 2 * dim + i]);
      const double up = to_float(gate_up[row * 2 * dim + dim + i]);
      const double expected = gate / (1 + std::exp(-gate)) * up;
      // The exponential's relative error grows with its exponent.
      const double relative = kRounding<T> + 1e-6 + 1e-7 * std::abs(gate);
      const double tolerance = relative * std::abs(expected) + 1e-30;
      expect_near("silu_and_mul", to_float(out[row * dim + i]), expected, tolerance);
    }
  }
}

template <class T>
void check_type(Random& random) {
  for (const RotaryCase& c : kRotaryCases) {
    check_rotate<T>(c, false, random);
    check_rotate<T>(c, true, random);
    check_quantizing_rotate<T>(c, random);
  }
  for (const int64_t dim : {576, 37, 3}) {
    check_rms_norm<T>(4, dim, false, random);
    check_rms_norm<T>(4, dim, true, random);
    check_silu<T>(3, dim, random);
  }
}

}  // namespace

void check_elementwise() {
  Random random(1);
  check_type<float>(random);
  check_type<bfloat16>(random);
}

}  // namespace paged_stream::portable
