// Adds the delta to the residual stream and normalises the sum, fused.
//
// Bytes per row: 2 * dim read and 2 * dim written in the dtype (1 and 1 without a delta), 4 * dim
// of weight from the hardware caches. One thread block per row; the row is kept in shared memory as
// float32 (4 * dim), so it is read once. Up to 1024 threads of 16 bytes each, two thread blocks per
// SM at dim 8192 in 2 bytes. Decoding has few rows: the time is then that of one launch.
#pragma once

#include "elements.cuh"
#include "launch.cuh"
#include "reduce.cuh"

namespace paged_stream {

struct RmsNormParams {
  void* residual;     // [rows, dim], updated if delta is given
  const void* delta;  // [rows, dim] or null
  const float* weight;
  void* out;
  int64_t rows;
  int dim;
  float eps;
  DType dtype;
};

// A row must fit the shared memory of a thread block on every device.
constexpr int64_t kMaxNormDim = 24 * 1024;
constexpr int kMaxNormThreads = 1024;

template <class T, int E>
__global__ void __launch_bounds__(kMaxNormThreads) add_rms_norm_kernel(const RmsNormParams p) {
  void* const scratch = dynamic_shared();
  float* const row = reinterpret_cast<float*>(dynamic_shared() + kReduceScratch);
  const int64_t begin = int64_t{blockIdx.x} * p.dim;
  T* const residual = static_cast<T*>(p.residual) + begin;
  const int first = static_cast<int>(threadIdx.x) * E, step = static_cast<int>(blockDim.x) * E;
  float squares = 0;
  for (int i = first; i < p.dim; i += step) {
    float x[E];
    load_elements<E>(residual + i, x);
    if (p.delta != nullptr) {
      float delta[E];
      load_elements<E>(static_cast<const T*>(p.delta) + begin + i, delta);
#pragma unroll
      for (int j = 0; j < E; ++j) x[j] = to_float(from_float<T>(x[j] + delta[j]));
      store_elements<E>(residual + i, x);
    }
#pragma unroll
    for (int j = 0; j < E; ++j) {
      squares = fmaf(x[j], x[j], squares);
      row[i + j] = x[j];
    }
  }
  const float mean = reduce_block(squares, 0.0f, scratch, Plus()) / static_cast<float>(p.dim);
  const float scale = 1.0f / sqrtf(mean + p.eps);
  // Each thread reads only the elements of the row that it wrote, so no barrier is needed.
  for (int i = first; i < p.dim; i += step) {
    float x[E];
#pragma unroll
    for (int j = 0; j < E; ++j) x[j] = row[i + j] * scale * p.weight[i + j];
    store_elements<E>(static_cast<T*>(p.out) + begin + i, x);
  }
}

template <class T, int E>
void launch_add_rms_norm(const RmsNormParams& p, Stream stream) {
  const unsigned wanted = ceil_div(p.dim, E * kWarpSize) * kWarpSize;
  const unsigned threads = wanted < kMaxNormThreads ? wanted : kMaxNormThreads;
  const size_t shared = kReduceScratch + p.dim * sizeof(float);
  launch(add_rms_norm_kernel<T, E>, static_cast<unsigned>(p.rows), threads, shared, stream, p);
}

inline void run_add_rms_norm(const RmsNormParams& p, Stream stream) {
  if (p.rows == 0 || p.dim == 0) return;
  with_model_type(p.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    constexpr int E = kVectorSize<T>;
    const bool is_wide = p.dim % E == 0 && is_aligned(p.residual, 16) && is_aligned(p.delta, 16) &&
                         is_aligned(p.out, 16);
    is_wide ? launch_add_rms_norm<T, E>(p, stream) : launch_add_rms_norm<T, 1>(p, stream);
  });
}

}  // namespace paged_stream
