// Rotation and writes to the cache on checked arguments, shared by the launchers.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>

#include "checks.h"
#include "number_types.h"
#include "ops/heads.h"

namespace paged_stream {

// The angles and slots of a step's T tokens.
struct RotaryStep {
  Angles angles, sink_angles;
  Slots slots;  // [T]

  static RotaryStep read(const Checker& check, const Tensor& rotary,
                         const std::optional<Tensor>& sink_rotary, bool interleaved,
                         const Slots& slots, const Tensor& cache);
};

// Does what the op rotary_and_cache does. sink_query.data is null if there are no sink angles.
void rotate_and_store(const Heads& query, const Heads& sink_query, const Heads& key,
                      const Heads& value, DType dtype, const Tensor& k_cache, const Tensor& v_cache,
                      const RotaryStep& step);

}  // namespace paged_stream
