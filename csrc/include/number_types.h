// Element types that kernels name. They only store bits; each device's code converts them.
#pragma once

#include <cstdint>

namespace paged_stream {

struct bfloat16 {
  uint16_t bits;
};
struct float16 {
  uint16_t bits;
};
// Four exponent bits, three mantissa bits, no infinities; the largest finite value is 448.
struct float8_e4m3 {
  uint8_t bits;
};

// kFloat16 and kFloat8 exist on CUDA only.
enum class DType { kFloat32 = 0, kBFloat16 = 1, kInt8 = 2, kFloat16 = 3, kFloat8 = 4 };

}  // namespace paged_stream
