// Conversions between float32 and the smaller types, rounded as the device does: to nearest, ties
// to even; float8 saturates.
#pragma once

#include <cmath>
#include <cstdint>

#include "number_types.h"

namespace paged_stream {

inline float widen(float x) { return x; }
inline float widen(bfloat16 x) {
  return __builtin_bit_cast(float, static_cast<uint32_t>(x.bits) << 16);
}

// Widens the bits, without sign, of a number with this mantissa size and least normal exponent.
template <int Mantissa, int LeastExponent>
float widen_bits(uint32_t bits) {
  const int exponent = static_cast<int>(bits >> Mantissa);
  const uint32_t fraction = bits & ((1u << Mantissa) - 1);
  const uint32_t digits = exponent == 0 ? fraction : fraction | 1u << Mantissa;
  const int power = (exponent == 0 ? 1 : exponent) - 1 + LeastExponent - Mantissa;
  return std::ldexp(static_cast<float>(digits), power);
}
inline float widen(float16 x) {
  const uint32_t bits = x.bits & 0x7fffu;
  const float size = bits > 0x7c00u    ? std::nanf("")
                     : bits == 0x7c00u ? HUGE_VALF
                                       : widen_bits<10, -14>(bits);
  return std::copysign(size, x.bits & 0x8000u ? -1.0f : 1.0f);
}
inline float widen(float8_e4m3 x) {
  const uint32_t bits = x.bits & 0x7fu;
  const float size = bits == 0x7fu ? std::nanf("") : widen_bits<3, -6>(bits);
  return std::copysign(size, x.bits & 0x80u ? -1.0f : 1.0f);
}

// Returns the bits, without sign, of the number nearest to a finite size >= 0. They may overflow
// into those of infinity and beyond.
template <int Mantissa, int LeastExponent>
uint32_t narrow_bits(float size) {
  int exponent = LeastExponent;
  if (size >= std::ldexp(1.0f, LeastExponent)) exponent = std::ilogb(size);
  const double digits = std::ldexp(static_cast<double>(size), Mantissa - exponent);
  const auto rounded = static_cast<uint32_t>(std::nearbyint(digits));
  return rounded + (static_cast<uint32_t>(exponent - LeastExponent) << Mantissa);
}

template <class T>
T narrow(float x);
template <>
inline float narrow<float>(float x) {
  return x;
}
template <>
inline bfloat16 narrow<bfloat16>(float x) {
  const uint32_t bits = __builtin_bit_cast(uint32_t, x);
  if (x != x) return {0x7fff};
  return {static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16)};
}
template <>
inline float16 narrow<float16>(float x) {
  const uint32_t sign = std::signbit(x) ? 0x8000u : 0u;
  if (x != x) return {0x7fff};
  const float size = std::fabs(x);
  const uint32_t bits = size >= 65520.0f ? 0x7c00u : narrow_bits<10, -14>(size);
  return {static_cast<uint16_t>(sign | bits)};
}
template <>
inline float8_e4m3 narrow<float8_e4m3>(float x) {
  const uint32_t sign = std::signbit(x) ? 0x80u : 0u;
  if (x != x) return {0x7f};
  const float size = std::fabs(x);
  const uint32_t bits = size >= 448.0f ? 0x7eu : narrow_bits<3, -6>(size);
  return {static_cast<uint8_t>(sign | bits)};
}

}  // namespace paged_stream
