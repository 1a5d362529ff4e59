// The random number that a token is drawn with: a function of the seed and the position only.
#pragma once

#include <cstdint>

#include "host_device.h"

namespace paged_stream {

// splitmix64
PAGED_STREAM_HOST_DEVICE inline uint64_t mix(uint64_t value) {
  value += 0x9E3779B97F4A7C15;
  value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9;
  value = (value ^ (value >> 27)) * 0x94D049BB133111EB;
  return value ^ (value >> 31);
}

// Returns a number in [0, 1), a hash of the arguments.
PAGED_STREAM_HOST_DEVICE inline double uniform(int64_t seed, int64_t position) {
  const uint64_t hash = mix(mix(static_cast<uint64_t>(seed)) ^ static_cast<uint64_t>(position));
  return static_cast<double>(hash >> 11) * 0x1p-53;
}

}  // namespace paged_stream
