// Kernels with one defect each, and their correct twins: the emulator must tell them apart.

#include "driver.h"
#include "launch.cuh"

namespace paged_stream {
namespace {

// Reverses the thread block's numbers through shared memory.
__global__ void reverse(const int32_t* in, int32_t* out, bool with_sync) {
  auto* numbers = reinterpret_cast<int32_t*>(dynamic_shared());
  numbers[threadIdx.x] = in[threadIdx.x];
  if (with_sync) sync_block();
  out[threadIdx.x] = numbers[blockDim.x - 1 - threadIdx.x];
}

// Finds the largest number. Numbers in shared memory that were never written must not exceed it.
__global__ void maximum(const float* in, float* out, int written) {
  auto* numbers = reinterpret_cast<float*>(dynamic_shared());
  if (static_cast<int>(threadIdx.x) < written) numbers[threadIdx.x] = in[threadIdx.x];
  sync_block();
  float most = numbers[threadIdx.x % 32];
  for (int mask = 16; mask > 0; mask /= 2) most = fmaxf(most, shuffle_xor(most, mask));
  out[threadIdx.x] = most;
}

// Copies two groups; waiting for the first must not complete the second.
__global__ void copy(const Vector16* in, Vector16* out, int groups_awaited) {
  auto* staged = reinterpret_cast<Vector16*>(dynamic_shared());
  const int i = static_cast<int>(threadIdx.x), n = static_cast<int>(blockDim.x);
  for (int group = 0; group < 2; ++group) {
    copy_async_16(&staged[group * n + i], &in[group * n + i], i % 4 != 3 ? 16 : 0);
    commit_copies();
  }
  if (groups_awaited == 1) wait_copies<1>();
  if (groups_awaited == 2) wait_copies<0>();
  sync_block();
  for (int group = 0; group < 2; ++group) out[group * n + i] = staged[group * n + (i ^ 1)];
}

__global__ void index(const int32_t* in, int32_t* out, int offset, bool in_shared) {
  auto* numbers = reinterpret_cast<int32_t*>(dynamic_shared());
  numbers[threadIdx.x + (in_shared ? offset : 0)] = in[threadIdx.x];
  sync_block();
  out[threadIdx.x] = numbers[threadIdx.x] + in[threadIdx.x + (in_shared ? 0 : offset)];
}

__global__ void sum_by_shuffles(const int32_t* in, int32_t* out, int lanes) {
  int32_t sum = in[threadIdx.x];
  if (static_cast<int>(threadIdx.x % 32) < lanes) {
    for (int mask = 16; mask > 0; mask /= 2) sum += shuffle_xor(sum, mask);
  }
  out[threadIdx.x] = sum;
}

// Both branches wait, but at different instructions.
__global__ void sync_in_branches(int32_t* out) {
  if (threadIdx.x < 32) {
    sync_block();
  } else {
    sync_block();
  }
  out[threadIdx.x] = 1;
}

// Multiplies a[16][16] b[16][8] from shared memory, with b stored by rows or by columns.
template <class T>
__global__ void product(const T* a, const T* b, float* out, bool b_is_transposed) {
  auto* shared = reinterpret_cast<T*>(dynamic_shared());
  const int lane = static_cast<int>(threadIdx.x);
  for (int i = lane; i < 256; i += 32) shared[i] = a[i];
  for (int i = lane; i < 128; i += 32) shared[256 + i] = b[i];
  sync_warp();
  uint32_t ra[4], rb[4], rb_pair[2];
  load_matrix_x4(ra, shared + lane % 16 * 16 + lane / 16 * 8);
  if (b_is_transposed) {
    load_matrix_x4(rb, shared + 256 + lane % 8 * 16 + lane / 8 % 2 * 8);
  } else {
    load_matrix_x4_transposed(rb, shared + 256 + lane % 16 * 8);
  }
  rb_pair[0] = rb[0];
  rb_pair[1] = rb[1];
  float d[4] = {1.0f, 1.0f, 1.0f, 1.0f};
  mma_16x8x16<T>(d, ra, rb_pair);
  for (int i = 0; i < 4; ++i) out[(lane / 4 + i / 2 * 8) * 8 + 2 * (lane % 4) + i % 2] = d[i];
}

template <class T>
void convert(const float* in, float* out, int64_t count) {
  for (int64_t i = 0; i < count; ++i) out[i] = to_float(from_float<T>(in[i]));
}

}  // namespace
}  // namespace paged_stream

using namespace paged_stream;

EMULATED(reverse) {
  const int64_t threads = args.integer();
  const auto* in = args.buffer<int32_t>();
  auto* out = args.buffer<int32_t>();
  const bool with_sync = args.integer() != 0;
  launch(reverse, 1, threads, threads * 4, Stream{}, in, out, with_sync);
}

EMULATED(maximum) {
  const auto* in = args.buffer<float>();
  auto* out = args.buffer<float>();
  launch(maximum, 1, 32, 128, Stream{}, in, out, static_cast<int>(args.integer()));
}

EMULATED(copy) {
  const auto* in = args.buffer<Vector16>();
  auto* out = args.buffer<Vector16>();
  launch(copy, 1, 32, 2 * 32 * 16, Stream{}, in, out, static_cast<int>(args.integer()));
}

EMULATED(index) {
  const auto* in = args.buffer<int32_t>();
  auto* out = args.buffer<int32_t>();
  const int offset = static_cast<int>(args.integer());
  launch(index, 1, 64, 256, Stream{}, in, out, offset, args.integer() != 0);
}

EMULATED(sum_by_shuffles) {
  const auto* in = args.buffer<int32_t>();
  auto* out = args.buffer<int32_t>();
  launch(sum_by_shuffles, 1, 64, 0, Stream{}, in, out, static_cast<int>(args.integer()));
}

EMULATED(sync_in_branches) {
  auto* out = args.buffer<int32_t>();
  launch(sync_in_branches, 1, static_cast<unsigned>(args.integer()), 0, Stream{}, out);
}

EMULATED(product) {
  const auto* a = args.buffer<uint16_t>();
  const auto* b = args.buffer<uint16_t>();
  auto* out = args.buffer<float>();
  const bool b_is_transposed = args.integer() != 0;
  const auto run = [&](auto kernel, const auto* typed_a, const auto* typed_b) {
    launch(kernel, 1, 32, 768, Stream{}, typed_a, typed_b, out, b_is_transposed);
  };
  if (args.integer() != 0) {
    run(product<bfloat16>, reinterpret_cast<const bfloat16*>(a),
        reinterpret_cast<const bfloat16*>(b));
  } else {
    run(product<float16>, reinterpret_cast<const float16*>(a), reinterpret_cast<const float16*>(b));
  }
}

EMULATED(convert) {
  const auto* in = args.buffer<float>();
  auto* out = args.buffer<float>();
  const int64_t count = args.integer(), type = args.integer();
  if (type == 0) convert<bfloat16>(in, out, count);
  if (type == 1) convert<float16>(in, out, count);
  if (type == 2) convert<float8_e4m3>(in, out, count);
}
