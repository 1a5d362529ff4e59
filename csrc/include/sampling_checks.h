// The checks of sample_tokens' arguments that need no tensor contents. The parameters come as one
// `Tensor[]`, in the order of the fields of SamplingTensors in paged_stream/ops/sample_tokens.py.
// No other file depends on that order.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <vector>

#include "checks.h"
#include "sampling_parameters.h"

namespace paged_stream {

inline SamplingParameters read_sampling(const Checker& check, const Tensor& logits,
                                        const std::vector<Tensor>& sampling,
                                        const Tensor& positions) {
  check.shape(logits, "logits", "[N, vocab]", {kAny, kAny});
  check.dtype(logits, "logits", ScalarType::Float);
  check.dense(logits, "logits", 1);
  const int64_t rows = logits.size(0), vocab = logits.size(1);
  check.require(vocab > 0 && vocab <= INT32_MAX, "vocab must be in [1, 2^31), got ", vocab);
  check.require(sampling.size() == 5, "sampling must have 5 tensors, got ", sampling.size());
  size_t next = 0;
  const auto field = [&](const char* name, ScalarType type) -> const Tensor& {
    const Tensor& t = sampling[next++];
    check.metadata(t, name, type, "[N]", {rows}, logits);
    return t;
  };
  SamplingParameters parameters{};
  parameters.temperature = field("temperature", ScalarType::Double).const_data_ptr<double>();
  parameters.min_p = field("min_p", ScalarType::Double).const_data_ptr<double>();
  parameters.top_k = field("top_k", ScalarType::Long).const_data_ptr<int64_t>();
  parameters.top_p = field("top_p", ScalarType::Double).const_data_ptr<double>();
  parameters.seeds = field("seeds", ScalarType::Long).const_data_ptr<int64_t>();
  check.metadata(positions, "positions", ScalarType::Long, "[N]", {rows}, logits);
  parameters.positions = positions.const_data_ptr<int64_t>();
  return parameters;
}

}  // namespace paged_stream
