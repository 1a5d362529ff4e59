// Element types that kernels name: storage alone, converted by the code of each device.
#pragma once

#include <cstdint>

namespace paged_stream {

struct bfloat16 {
  uint16_t bits;
};
struct float16 {
  uint16_t bits;
};
// Four exponent bits, three of mantissa, no infinities; the largest finite number is 448.
struct float8_e4m3 {
  uint8_t bits;
};

// Float16 and Float8 exist on CUDA alone.
enum class DType { kFloat32 = 0, kBFloat16 = 1, kInt8 = 2, kFloat16 = 3, kFloat8 = 4 };

}  // namespace paged_stream
