// Implements csrc/cuda/device.cuh and the names of CUDA C++ for g++: kernels run on the host.
//
// The threads of a thread block are fibers of one host thread. A fiber runs until it has to wait
// for others, so the order in which fibers resume (`Schedule`) determines how threads interleave;
// results that depend on it reveal a race. Shared memory starts with a pattern that also depends on
// the schedule, and an asynchronous copy leaves that pattern at its target until it is waited for.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <source_location>
#include <type_traits>

#include "small_floats.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace paged_stream {
namespace emulator {

struct Schedule {
  enum class Order { kForward, kReverse, kShuffled };
  Order order = Order::kForward;
  uint64_t seed = 0;  // of the shuffled order
  // Contents of uninitialised shared memory: NaN, large numbers, or (from kRandom up) random bytes.
  static constexpr uint64_t kNaN = 0, kLarge = 1, kRandom = 2;
  uint64_t poison = kNaN;
};
inline Schedule schedule;

using Where = std::source_location;

// Runs the kernel for every thread of every thread block. Throws std::runtime_error for launches
// that CUDA rejects and for threads that wait for ever.
void run_grid(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& kernel);

// Stops the launch; run_grid throws the message.
[[noreturn]] void fail(const char* what, const Where& where);

// Returns when all lanes of the warp have arrived; the last one calls complete(payloads).
void meet_warp(const char* what, void* payload, void (*complete)(void* const* payloads),
               const Where& where);
void meet_block(const char* what, const Where& where);

uint8_t* shared_memory();
int lane();
void start_copy_16(void* shared, const void* global, int bytes, const Where& where);
void end_copy_group();
void finish_copies(size_t groups_left);

inline void require(bool condition, const char* what, const Where& where) {
  if (!condition) fail(what, where);
}

template <class T>
struct Exchange {
  T value, result;
  int source;
};

template <class T>
T exchange(const char* what, T value, int source, const Where& where) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8);
  Exchange<T> mine{value, value, source};
  const auto complete = [](void* const* lanes) {
    for (int i = 0; i < 32; ++i) {
      auto* to = static_cast<Exchange<T>*>(lanes[i]);
      to->result = static_cast<Exchange<T>*>(lanes[to->source])->value;
    }
  };
  meet_warp(what, &mine, complete, where);
  return mine.result;
}

struct MatrixRows {
  const uint16_t* row;
  uint32_t* r;
};
void load_matrices(const char* what, uint32_t (&r)[4], const void* row, bool transposed,
                   const Where& where);

struct MatrixProduct {
  float* d;
  const uint32_t *a, *b;
};
void multiply(void* const* lanes, float (*widen)(uint16_t));

}  // namespace emulator

// ---- Memory ----

inline Vector16 load_16(const void* global,
                        const emulator::Where& where = emulator::Where::current()) {
  emulator::require(reinterpret_cast<uintptr_t>(global) % 16 == 0, "load_16 is misaligned", where);
  Vector16 v;
  std::memcpy(&v, global, sizeof(v));
  return v;
}
inline void copy_async_16(void* shared, const void* global, int bytes,
                          const emulator::Where& where = emulator::Where::current()) {
  emulator::start_copy_16(shared, global, bytes, where);
}
inline void commit_copies() { emulator::end_copy_group(); }
template <int Groups>
void wait_copies() {
  emulator::finish_copies(Groups);
}
inline uint8_t* dynamic_shared() { return emulator::shared_memory(); }

// ---- Threads ----

inline void sync_block(const emulator::Where& where = emulator::Where::current()) {
  emulator::meet_block("sync_block", where);
}
inline void sync_warp(const emulator::Where& where = emulator::Where::current()) {
  emulator::meet_warp("sync_warp", nullptr, [](void* const*) {}, where);
}
template <class T>
T shuffle(T value, int source_lane, const emulator::Where& where = emulator::Where::current()) {
  return emulator::exchange("shuffle", value, source_lane & 31, where);
}
template <class T>
T shuffle_xor(T value, int mask, const emulator::Where& where = emulator::Where::current()) {
  return emulator::exchange("shuffle_xor", value, (emulator::lane() ^ mask) & 31, where);
}
template <class T>
T shuffle_down(T value, int distance, const emulator::Where& where = emulator::Where::current()) {
  const int lane = emulator::lane(), source = lane + distance;
  return emulator::exchange("shuffle_down", value, source < 32 ? source : lane, where);
}
template <class T>
T shuffle_up(T value, int distance, const emulator::Where& where = emulator::Where::current()) {
  const int lane = emulator::lane(), source = lane - distance;
  return emulator::exchange("shuffle_up", value, source >= 0 ? source : lane, where);
}
inline uint32_t ballot(bool vote, const emulator::Where& where = emulator::Where::current()) {
  emulator::Exchange<uint32_t> mine{vote, 0, 0};
  const auto complete = [](void* const* lanes) {
    uint32_t bits = 0;
    for (int i = 0; i < 32; ++i) {
      bits |= static_cast<emulator::Exchange<uint32_t>*>(lanes[i])->value << i;
    }
    for (int i = 0; i < 32; ++i) {
      static_cast<emulator::Exchange<uint32_t>*>(lanes[i])->result = bits;
    }
  };
  emulator::meet_warp("ballot", &mine, complete, where);
  return mine.result;
}
inline int count_ones(uint32_t bits) { return __builtin_popcount(bits); }
inline int first_one(uint32_t bits) { return __builtin_ctz(bits); }

[[noreturn]] inline void trap(const emulator::Where& where = emulator::Where::current()) {
  emulator::fail("trap", where);
}

// ---- Matrix units ----

inline void load_matrix_x4(uint32_t (&r)[4], const void* shared_row,
                           const emulator::Where& where = emulator::Where::current()) {
  emulator::load_matrices("load_matrix_x4", r, shared_row, false, where);
}
inline void load_matrix_x4_transposed(uint32_t (&r)[4], const void* shared_row,
                                      const emulator::Where& where = emulator::Where::current()) {
  emulator::load_matrices("load_matrix_x4_transposed", r, shared_row, true, where);
}
template <class T>
void mma_16x8x16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                 const emulator::Where& where = emulator::Where::current()) {
  emulator::MatrixProduct mine{d, a, b};
  const auto complete = [](void* const* lanes) {
    emulator::multiply(lanes, [](uint16_t bits) { return widen(T{bits}); });
  };
  emulator::meet_warp("mma_16x8x16", &mine, complete, where);
}

// ---- Numbers ----

template <class T>
float to_float(T x) {
  return widen(x);
}
inline uint32_t to_float16_pair(uint16_t float8_pair) {
  const auto half = [](int bits) {
    return uint32_t{narrow<float16>(widen(float8_e4m3{static_cast<uint8_t>(bits)})).bits};
  };
  return half(float8_pair >> 8) << 16 | half(float8_pair & 0xff);
}
template <class T>
T from_float(float x) {
  return narrow<T>(x);
}
template <class T>
uint32_t pack_pair(float low, float high) {
  return uint32_t{narrow<T>(high).bits} << 16 | narrow<T>(low).bits;
}
inline float fast_exp2(float x) { return std::exp2(x); }
inline uint32_t float_bits(float x) { return __builtin_bit_cast(uint32_t, x); }
inline float bits_float(uint32_t x) { return __builtin_bit_cast(float, x); }

}  // namespace paged_stream
