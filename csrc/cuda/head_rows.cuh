// A row (one head of one token) in the registers of a group of lanes: loaded, rotated, stored.
//
// A row is split into units. Within rotary_dim a unit is E pairs with consecutive angles; after it,
// 2 * E neighbouring elements. A lane holds one unit (two 16-byte accesses of the widest dtype) or,
// where rows are not aligned for that, up to four units of one pair.
#pragma once

#include "cache_layout.h"
#include "elements.cuh"

namespace paged_stream {

struct RowShape {
  int head_dim;
  int half;          // rotary_dim / 2; 0 copies without rotating
  bool interleaved;  // pairs are (2i, 2i + 1), otherwise (i, i + half)
};

// A row's angles: `half` cosines, then `half` sines.
using Angles = const float*;

template <int E>
constexpr int kUnitsPerLane = E == 1 ? 4 : 1;

// Returns the number of lanes that share a row, a power of two.
template <int E>
int lanes_per_row(int head_dim) {
  int lanes = 1;
  while (lanes * kUnitsPerLane<E> * 2 * E < head_dim) lanes *= 2;
  return lanes;
}

// Returns whether the row and `angles` can be accessed in units of E pairs.
template <int E>
bool units_fit(const RowShape& shape, Angles angles) {
  return shape.half % E == 0 && shape.head_dim % (2 * E) == 0 && is_aligned(angles, 16);
}

// Rotates a pair with the CPU's fused operations, so that the results are bit-identical.
__device__ __forceinline__ void turn_pair(float& x, float& y, float cosine, float sine) {
  const float first = fmaf(x, cosine, -(y * sine));
  y = fmaf(y, cosine, x * sine);
  x = first;
}

template <int E>
struct HeadRow {
  static constexpr int kUnits = kUnitsPerLane<E>;
  float x[kUnits][2 * E];

  struct Place {
    int first, second;  // offsets of two runs of E elements
    bool is_turned;
    bool exists;
  };

  static __device__ __forceinline__ Place place(const RowShape& shape, int unit) {
    const int begin = 2 * E * unit;
    if (unit * E < shape.half) {
      const int other = shape.interleaved ? begin + E : shape.half + unit * E;
      return {shape.interleaved ? begin : unit * E, other, true, true};
    }
    return {begin, begin + E, false, begin < shape.head_dim};
  }

  template <class T>
  __device__ __forceinline__ void load(const T* row, const RowShape& shape, int lane, int lanes) {
    for_units(shape, lane, lanes, [&](int k, int, const Place& at) {
      load_run(row, at.first, shape.head_dim, 0, k);
      load_run(row, at.second, shape.head_dim, E, k);
    });
  }

  __device__ __forceinline__ void turn(Angles angles, const RowShape& shape, int lane, int lanes) {
    for_units(shape, lane, lanes, [&](int k, int unit, const Place& at) {
      if (!at.is_turned) return;
      float cosines[E], sines[E];
      load_angles(angles + unit * E, cosines);
      load_angles(angles + shape.half + unit * E, sines);
#pragma unroll
      for (int i = 0; i < E; ++i) {
        if (shape.interleaved) {
          turn_pair(x[k][2 * i], x[k][2 * i + 1], cosines[i], sines[i]);
        } else {
          turn_pair(x[k][i], x[k][E + i], cosines[i], sines[i]);
        }
      }
    });
  }

  template <class T>
  __device__ __forceinline__ void store(T* row, const RowShape& shape, int lane, int lanes) const {
    for_units(shape, lane, lanes, [&](int k, int, const Place& at) {
      store_run(row + at.first, 0, k);
      store_run(row + at.second, E, k);
    });
  }

  // Returns the row's int8 scale. All lanes of the warp must call this; those without a row may
  // pass arbitrary values.
  __device__ __forceinline__ RowScale scale(const RowShape& shape, int lane, int lanes) const {
    float largest = 0, nothing = 0;
    for_units(shape, lane, lanes, [&](int k, int, const Place&) {
#pragma unroll
      for (int i = 0; i < 2 * E; ++i) {
        const float size = fabsf(x[k][i]);
        largest = size > largest ? size : largest;
        nothing += x[k][i] * 0.0f;
      }
    });
    for (int mask = lanes / 2; mask > 0; mask /= 2) {
      const float other = shuffle_xor(largest, mask);
      largest = other > largest ? other : largest;
      nothing += shuffle_xor(nothing, mask);
    }
    return quantized_scale(largest, nothing);
  }

  __device__ __forceinline__ void store_quantized(int8_t* row, const RowScale& by,
                                                  const RowShape& shape, int lane,
                                                  int lanes) const {
    for_units(shape, lane, lanes, [&](int k, int, const Place& at) {
      store_bytes(row + at.first, 0, k, by.inverse);
      store_bytes(row + at.second, E, k, by.inverse);
    });
    if (lane == 0) *reinterpret_cast<float*>(row + shape.head_dim) = by.scale;
  }

 private:
  // Calls body(k, unit, place) for each unit that this lane holds.
  template <class Body>
  static __device__ __forceinline__ void for_units(const RowShape& shape, int lane, int lanes,
                                                   const Body& body) {
#pragma unroll
    for (int k = 0; k < kUnits; ++k) {
      const int unit = lane + k * lanes;
      const Place at = place(shape, unit);
      if (at.exists) body(k, unit, at);
    }
  }

  template <class T>
  __device__ __forceinline__ void load_run(const T* row, int at, int, int to, int k) {
    float run[E];
    load_elements<E>(row + at, run);
#pragma unroll
    for (int i = 0; i < E; ++i) x[k][to + i] = run[i];
  }
  // Int8 rows are aligned to 4 bytes only.
  __device__ __forceinline__ void load_run(const int8_t* row, int at, int head_dim, int to, int k) {
    constexpr int kWord = E < 4 ? E : 4;
    const float by = *reinterpret_cast<const float*>(row + head_dim);
#pragma unroll
    for (int i = 0; i < E; i += kWord) {
      const auto word = *reinterpret_cast<const Elements<int8_t, kWord>*>(row + at + i);
#pragma unroll
      for (int j = 0; j < kWord; ++j) {
        x[k][to + i + j] = static_cast<float>(word.values[j]) * by;
      }
    }
  }

  template <class T>
  __device__ __forceinline__ void store_run(T* to, int from, int k) const {
    float run[E];
#pragma unroll
    for (int i = 0; i < E; ++i) run[i] = x[k][from + i];
    store_elements<E>(to, run);
  }
  __device__ __forceinline__ void store_bytes(int8_t* to, int from, int k, float inverse) const {
    constexpr int kWord = E < 4 ? E : 4;
#pragma unroll
    for (int i = 0; i < E; i += kWord) {
      Elements<int8_t, kWord> word;
#pragma unroll
      for (int j = 0; j < kWord; ++j) {
        const float shifted = fmaf(x[k][from + i + j], inverse, kRoundingShift);
        word.values[j] = static_cast<int8_t>(float_bits(shifted));
      }
      *reinterpret_cast<Elements<int8_t, kWord>*>(to + i) = word;
    }
  }

  static __device__ __forceinline__ void load_angles(const float* from, float (&angles)[E]) {
    constexpr int kVector = E < 4 ? E : 4;
#pragma unroll
    for (int i = 0; i < E; i += kVector) {
      const auto v = *reinterpret_cast<const Elements<float, kVector>*>(from + i);
#pragma unroll
      for (int j = 0; j < kVector; ++j) angles[i + j] = v.values[j];
    }
  }
};

}  // namespace paged_stream
