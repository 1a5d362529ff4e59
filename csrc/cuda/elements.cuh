// Vector loads and stores of row elements, and dispatch by dtype.
#pragma once

#include <type_traits>

#include "device.cuh"

namespace paged_stream {

// One access of Count * sizeof(T) bytes; its address must be a multiple of that.
template <class T, int Count>
struct alignas(Count * sizeof(T)) Elements {
  T values[Count];
};

template <int Count, class T>
__device__ __forceinline__ void load_elements(const T* from, float (&x)[Count]) {
  const auto v = *reinterpret_cast<const Elements<T, Count>*>(from);
#pragma unroll
  for (int i = 0; i < Count; ++i) x[i] = to_float(v.values[i]);
}
template <int Count, class T>
__device__ __forceinline__ void store_elements(T* to, const float (&x)[Count]) {
  Elements<T, Count> v;
#pragma unroll
  for (int i = 0; i < Count; ++i) v.values[i] = from_float<T>(x[i]);
  *reinterpret_cast<Elements<T, Count>*>(to) = v;
}

// Elements of T in 16 bytes.
template <class T>
constexpr int kVectorSize = 16 / static_cast<int>(sizeof(T));

inline bool divides(int64_t bytes, int64_t size) { return size % bytes == 0; }
inline bool is_aligned(const void* p, int64_t bytes) {
  return divides(bytes, static_cast<int64_t>(reinterpret_cast<uintptr_t>(p)));
}

template <class T>
struct TypeTag {
  using type = T;
};

// Calls run with the tag of a dtype that models compute in.
template <class Run>
void with_model_type(DType dtype, const Run& run) {
  if (dtype == DType::kFloat32) run(TypeTag<float>{});
  if (dtype == DType::kBFloat16) run(TypeTag<bfloat16>{});
  if (dtype == DType::kFloat16) run(TypeTag<float16>{});
}

// Calls run with the tag of a cache's dtype.
template <class Run>
void with_cache_type(DType dtype, const Run& run) {
  with_model_type(dtype, run);
  if (dtype == DType::kInt8) run(TypeTag<int8_t>{});
  if (dtype == DType::kFloat8) run(TypeTag<float8_e4m3>{});
}

inline unsigned ceil_div(int64_t a, int64_t b) { return static_cast<unsigned>((a + b - 1) / b); }

}  // namespace paged_stream
