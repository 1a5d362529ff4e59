// Cosines and sines of a step's positions.
//
// Bytes: 8 written per token and frequency. Bound by arithmetic: a float64 sine and cosine each,
// which the library reduces exactly however large the angle, some 100 operations (from about 10^5
// radians a slower path with a stack frame). One thread per angle, full occupancy.
#pragma once

#include "elements.cuh"
#include "launch.cuh"

namespace paged_stream {

struct RotaryTableParams {
  const int64_t* positions;  // [rows]
  const double* inv_freq;    // [half]
  double scaling;
  float* out;  // [rows, 2 * half]
  int64_t rows, half;
};

constexpr int kTableThreads = 128;

__global__ void __launch_bounds__(kTableThreads) rotary_table_kernel(const RotaryTableParams p) {
  const int64_t index = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  const int64_t r = index / p.half, i = index - r * p.half;
  if (r >= p.rows) return;
  double sine, cosine;
  sincos(static_cast<double>(p.positions[r]) * p.inv_freq[i], &sine, &cosine);
  float* const row = p.out + r * 2 * p.half;
  row[i] = static_cast<float>(cosine * p.scaling);
  row[p.half + i] = static_cast<float>(sine * p.scaling);
}

inline void run_rotary_table(const RotaryTableParams& p, Stream stream) {
  if (p.rows == 0 || p.half == 0) return;
  launch(rotary_table_kernel, ceil_div(p.rows * p.half, kTableThreads), kTableThreads, 0, stream,
         p);
}

}  // namespace paged_stream
