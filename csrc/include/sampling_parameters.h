// The sampling parameters of N rows of logits as kernels use them: plain pointers, [N] each.
// sampling_checks.h builds them from the tensors that the op takes.
#pragma once

#include <cstdint>

namespace paged_stream {

// Drawn from a row that has no distribution: its largest logit is NaN or infinite.
constexpr int kNoToken = -1;

struct SamplingParameters {
  const double *temperature, *min_p;
  const int64_t* top_k;
  const double* top_p;
  const int64_t *seeds, *positions;
};

}  // namespace paged_stream
