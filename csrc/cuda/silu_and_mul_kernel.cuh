// The gated activation, silu(gate) * up.
//
// Bytes per row: 2 * dim read, dim written. A thread makes one 16-byte access per operand; no
// shared memory, full occupancy.
#pragma once

#include "elements.cuh"
#include "launch.cuh"

namespace paged_stream {

struct SiluAndMulParams {
  const void* gate_up;  // [rows, 2 * dim]
  void* out;            // [rows, dim]
  int64_t rows, dim;
  DType dtype;
};

constexpr int kSiluThreads = 256;

template <class T, int E>
__global__ void __launch_bounds__(kSiluThreads) silu_and_mul_kernel(const SiluAndMulParams p) {
  const int64_t per_row = p.dim / E;
  const int64_t index = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  const int64_t r = index / per_row, i = (index - r * per_row) * E;
  if (r >= p.rows) return;
  const T* const gate_up = static_cast<const T*>(p.gate_up) + r * 2 * p.dim + i;
  float gate[E], up[E];
  load_elements<E>(gate_up, gate);
  load_elements<E>(gate_up + p.dim, up);
#pragma unroll
  for (int j = 0; j < E; ++j) {
    // Computed from e^-|x|, so that nothing overflows.
    const float power = expf(-fabsf(gate[j]));
    up[j] *= gate[j] * (gate[j] < 0 ? power : 1.0f) / (1.0f + power);
  }
  store_elements<E>(static_cast<T*>(p.out) + r * p.dim + i, up);
}

inline void run_silu_and_mul(const SiluAndMulParams& p, Stream stream) {
  if (p.rows == 0 || p.dim == 0) return;
  with_model_type(p.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    constexpr int E = kVectorSize<T>;
    const bool is_wide = p.dim % E == 0 && is_aligned(p.gate_up, 16) && is_aligned(p.out, 16);
    const unsigned blocks = ceil_div(p.rows * p.dim / (is_wide ? E : 1), kSiluThreads);
    const auto kernel = is_wide ? silu_and_mul_kernel<T, E> : silu_and_mul_kernel<T, 1>;
    launch(kernel, blocks, kSiluThreads, 0, stream, p);
  });
}

}  // namespace paged_stream
