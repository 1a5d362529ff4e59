// Random inputs, and comparisons of results with those of plain float64 loops.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "isa/kernel_table.h"

namespace paged_stream::portable {

inline float to_float(float x) { return x; }
inline float to_float(bfloat16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

// Rounds a finite x to nearest, ties to even.
template <class T>
T from_float(float x);
template <>
inline float from_float(float x) {
  return x;
}
template <>
inline bfloat16 from_float(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  bits += 0x7fff + (bits >> 16 & 1);
  return {static_cast<uint16_t>(bits >> 16)};
}

template <class T>
constexpr DType kDTypeOf = sizeof(T) == 4 ? DType::kFloat32 : DType::kBFloat16;
template <class T>
constexpr int kIndexOf = static_cast<int>(kDTypeOf<T>);
// The largest relative error from rounding a result to the type.
template <class T>
constexpr double kRounding = sizeof(T) == 4 ? 0x1p-23 : 0x1p-8;

class Random {
 public:
  explicit Random(uint32_t seed) : engine_(seed) {}

  // Returns a uniform integer in [0, end).
  int below(int end) { return static_cast<int>(engine_() % static_cast<uint32_t>(end)); }
  // Returns a uniform number in [0, 1).
  double uniform() { return engine_() / 4294967296.0; }
  // The distributions of <random> differ between libraries; a sum of uniform numbers does not.
  float normal() {
    double sum = -6;
    for (int i = 0; i < 12; ++i) sum += uniform();
    return static_cast<float>(sum);
  }
  template <class T>
  std::vector<T> normals(int64_t size) {
    std::vector<T> values(size);
    for (T& value : values) value = from_float<T>(normal());
    return values;
  }

 private:
  std::mt19937 engine_;
};

// Records a failure unless `result` is within `tolerance` of `expected`; NaN always fails.
void expect_near(const std::string& what, double result, double expected, double tolerance);

void check_elementwise();
void check_linear();
void check_attention();
void check_sampling();

}  // namespace paged_stream::portable
