// The device features that kernels use beyond plain C++; no other file has CUDA intrinsics or PTX.
// With -DPAGED_STREAM_EMULATE, tests/cuda_emulator provides the same names for g++ without a GPU.
//
// Kernels use only full warps (thread blocks are multiples of 32 threads, and every lane takes part
// in every warp-wide call) and only dynamic shared memory.
#pragma once

#include <cstdint>

#include "number_types.h"

namespace paged_stream {

constexpr int kWarpSize = 32;

// The bytes of one load or store, whose address must be a multiple of their number.
template <int Bytes>
struct alignas(Bytes) VectorOf {
  uint8_t bytes[Bytes];
};
struct alignas(16) Vector16 {
  uint32_t words[4];
};

}  // namespace paged_stream

#if defined(PAGED_STREAM_EMULATE)
#include "emulator.h"
#else

#include <cuda_fp8.h>
#include <cuda_runtime.h>

namespace paged_stream {

// ---- Memory ----

// Reads 16 bytes, at a multiple of 16, that no thread writes while the kernel runs.
__device__ __forceinline__ Vector16 load_16(const void* global) {
  const uint4 v = __ldg(static_cast<const uint4*>(global));
  return {{v.x, v.y, v.z, v.w}};
}

__device__ __forceinline__ uint32_t shared_address(const void* shared) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}

// Starts a copy of `bytes` bytes, 0 to 16, followed by zeros up to 16. Both addresses must be
// multiples of 16. `shared` is undefined until wait_copies, and visible to other threads after a
// barrier that follows.
__device__ __forceinline__ void copy_async_16(void* shared, const void* global, int bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)),
               "l"(global), "r"(bytes)
               : "memory");
}

// Commits this thread's copies since the last call as one group.
__device__ __forceinline__ void commit_copies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

// Waits until at most the newest Groups groups of this thread are in flight.
template <int Groups>
__device__ __forceinline__ void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(Groups) : "memory");
}

// Returns the thread block's dynamic shared memory, aligned to 128 bytes.
__device__ __forceinline__ uint8_t* dynamic_shared() {
  extern __shared__ __align__(128) uint8_t paged_stream_shared[];
  return paged_stream_shared;
}

// ---- Threads ----

__device__ __forceinline__ void sync_block() { __syncthreads(); }
__device__ __forceinline__ void sync_warp() { __syncwarp(); }

// Every lane of the warp calls these, with values of 4 or 8 bytes.
template <class T>
__device__ __forceinline__ T shuffle(T value, int source_lane) {
  return __shfl_sync(0xffffffffu, value, source_lane);
}
template <class T>
__device__ __forceinline__ T shuffle_xor(T value, int mask) {
  return __shfl_xor_sync(0xffffffffu, value, mask);
}
// The last `distance` lanes keep their own value.
template <class T>
__device__ __forceinline__ T shuffle_down(T value, int distance) {
  return __shfl_down_sync(0xffffffffu, value, distance);
}
// The first `distance` lanes keep their own value.
template <class T>
__device__ __forceinline__ T shuffle_up(T value, int distance) {
  return __shfl_up_sync(0xffffffffu, value, distance);
}
__device__ __forceinline__ uint32_t ballot(bool vote) { return __ballot_sync(0xffffffffu, vote); }

__device__ __forceinline__ int count_ones(uint32_t bits) { return __popc(bits); }
// Returns the index of the lowest set bit; `bits` must not be 0.
__device__ __forceinline__ int first_one(uint32_t bits) { return __ffs(bits) - 1; }

// Aborts the kernel: for arguments that the host cannot check without waiting.
[[noreturn]] __device__ __forceinline__ void trap() {
  __trap();
  __builtin_unreachable();
}

// ---- Matrix units ----

// Loads four 8x8 matrices of 2-byte elements. Lane i passes the address of the 16 bytes of row
// i % 8 of matrix i / 8, and receives in r[m] elements 2 * (i % 4) and the next of row i / 4 of
// matrix m.
__device__ __forceinline__ void load_matrix_x4(uint32_t (&r)[4], const void* shared_row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(shared_row))
               : "memory");
}
// Loads the transposed matrices: elements (2 * (i % 4), i / 4) and (2 * (i % 4) + 1, i / 4).
__device__ __forceinline__ void load_matrix_x4_transposed(uint32_t (&r)[4],
                                                          const void* shared_row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(shared_row))
               : "memory");
}

// Computes d[16][8] += a[16][16] * b[16][8] by a warp. With g = lane / 4 and t = lane % 4:
//   a: column pairs (2t, 2t + 1) of rows g and g + 8, then (2t + 8, 2t + 9) of the same rows
//   b: row pairs (2t, 2t + 1) and (2t + 8, 2t + 9) of column g
//   d: columns 2t and 2t + 1 of row g, then of row g + 8
template <class T>
__device__ __forceinline__ void mma_16x8x16(float (&d)[4], const uint32_t (&a)[4],
                                            const uint32_t (&b)[2]);
template <>
__device__ __forceinline__ void mma_16x8x16<bfloat16>(float (&d)[4], const uint32_t (&a)[4],
                                                      const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
template <>
__device__ __forceinline__ void mma_16x8x16<float16>(float (&d)[4], const uint32_t (&a)[4],
                                                     const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// ---- Numbers ----

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(bfloat16 x) {
  return __uint_as_float(static_cast<uint32_t>(x.bits) << 16);
}
__device__ __forceinline__ float to_float(float16 x) {
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
  return y;
}
// Converts two float8 values to float16; the first is in the low half.
__device__ __forceinline__ uint32_t to_float16_pair(uint16_t float8_pair) {
  const __half2_raw pair = __nv_cvt_fp8x2_to_halfraw2(float8_pair, __NV_E4M3);
  return static_cast<uint32_t>(pair.y) << 16 | pair.x;
}
__device__ __forceinline__ float to_float(float8_e4m3 x) {
  return to_float(float16{__nv_cvt_fp8_to_halfraw(x.bits, __NV_E4M3).x});
}

// Rounds to nearest, ties to even. Float8 saturates at 448; NaN stays NaN.
template <class T>
__device__ __forceinline__ T from_float(float x);
template <>
__device__ __forceinline__ float from_float<float>(float x) {
  return x;
}
template <>
__device__ __forceinline__ bfloat16 from_float<bfloat16>(float x) {
  bfloat16 y;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
  return y;
}
template <>
__device__ __forceinline__ float16 from_float<float16>(float x) {
  float16 y;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
  return y;
}
template <>
__device__ __forceinline__ float8_e4m3 from_float<float8_e4m3>(float x) {
  return {__nv_cvt_float_to_fp8(x, __NV_SATFINITE, __NV_E4M3)};
}

// Rounds two numbers into one operand word of mma_16x8x16; the first is in the low half.
template <class T>
__device__ __forceinline__ uint32_t pack_pair(float low, float high);
template <>
__device__ __forceinline__ uint32_t pack_pair<bfloat16>(float low, float high) {
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}
template <>
__device__ __forceinline__ uint32_t pack_pair<float16>(float low, float high) {
  uint32_t pair;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}

// Returns 2^x to about two units in the last place; 0 for -infinity.
__device__ __forceinline__ float fast_exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ __forceinline__ uint32_t float_bits(float x) { return __float_as_uint(x); }
__device__ __forceinline__ float bits_float(uint32_t x) { return __uint_as_float(x); }

}  // namespace paged_stream

#endif
