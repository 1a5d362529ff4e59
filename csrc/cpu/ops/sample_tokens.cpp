// Launcher of sample_tokens: validation, random numbers, work sharing.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "checks.h"
#include "isa/kernel_table.h"
#include "sampling_checks.h"
#include "sampling_hash.h"
#include "threads/parallel.h"

namespace paged_stream {
namespace {

constexpr int64_t kMinLogitsPerThread = 1 << 14;
// Outside this range, float32 logit differences over the temperature leave the range of float64.
constexpr double kLeastTemperature = 1e-5, kMostTemperature = 1e30;

void check_values(const Checker& check, const SamplingParameters& params, int64_t rows) {
  for (int64_t i = 0; i < rows; ++i) {
    const double value = params.temperature[i], min_p = params.min_p[i], top_p = params.top_p[i];
    check.require(value == 0.0 || (value >= kLeastTemperature && value <= kMostTemperature),
                  "temperature must be 0 or in [1e-5, 1e30], got ", value);
    check.require(min_p >= 0.0 && min_p <= 1.0, "min_p must be in [0, 1], got ", min_p);
    check.require(top_p > 0.0 && top_p <= 1.0, "top_p must be in (0, 1], got ", top_p);
  }
}

// Samples rows of logits. Keeps the largest logit of each tile of a row.
class Sampler {
 public:
  Sampler(const Tensor& logits, const SamplingParameters& params)
      : params_(params),
        logits_(logits.const_data_ptr<float>()),
        stride_(row_stride(logits)),
        rows_(logits.size(0)),
        vocab_(logits.size(1)),
        num_tiles_((vocab_ + kVocabTile - 1) / kVocabTile),
        padded_tiles_((num_tiles_ + kMaximaPadding - 1) / kMaximaPadding * kMaximaPadding) {
    static thread_local GrowingBuffer<float> all_maxima;
    maxima_ = all_maxima.get(rows_ * padded_tiles_);
    std::fill_n(maxima_, rows_ * padded_tiles_, -std::numeric_limits<float>::infinity());
  }

  void run(int64_t* tokens) const {
    const int64_t work = rows_ * vocab_;
    // With more threads than rows, the pass over all logits is shared in parts of a row.
    const int64_t threads = torch::stable::get_num_threads();
    const int64_t parts = std::min(num_tiles_, (threads + rows_ - 1) / rows_);
    if (parts > 1) {
      for_each_item(rows_ * parts, work, kMinLogitsPerThread,
                    [&](int64_t item) { find_maxima(item / parts, item % parts, parts); });
    }
    for_each_item(rows_, work, kMinLogitsPerThread, [&](int64_t row) {
      if (parts == 1) find_maxima(row, 0, 1);
      tokens[row] = pick(row);
    });
  }

 private:
  void find_maxima(int64_t row, int64_t part, int64_t parts) const {
    kernels_.tile_maxima(logits_ + row * stride_, vocab_, num_tiles_ * part / parts,
                         num_tiles_ * (part + 1) / parts, maxima_ + row * padded_tiles_);
  }

  int64_t pick(int64_t row) const {
    static thread_local GrowingBuffer<double> weights;
    static thread_local GrowingBuffer<VocabTile> tiles;
    SampleArgs args{};
    args.logits = logits_ + row * stride_;
    args.vocab = vocab_;
    args.maxima = maxima_ + row * padded_tiles_;
    args.padded_tiles = padded_tiles_;
    args.greedy = params_.temperature[row] == 0.0;
    if (!args.greedy) {
      args.inv_temperature = 1.0 / params_.temperature[row];
      args.log_min_p = std::log(params_.min_p[row]);
      args.top_k = params_.top_k[row];
      args.top_p = params_.top_p[row];
      args.uniform = uniform(params_.seeds[row], params_.positions[row]);
      args.weights = weights.get(padded_tiles_ * kVocabTile);
      args.tiles = tiles.get(padded_tiles_);
    }
    return kernels_.pick_token(args);
  }

  const SamplingParameters& params_;
  const Kernels& kernels_ = kernels();
  const float* logits_;
  int64_t stride_, rows_, vocab_, num_tiles_, padded_tiles_;
  float* maxima_;  // [rows, padded_tiles]
};

Tensor sample_tokens(Tensor logits, std::vector<Tensor> sampling, Tensor positions) {
  constexpr Checker check("sample_tokens");
  const SamplingParameters params = read_sampling(check, logits, sampling, positions);
  const int64_t rows = logits.size(0);
  check_values(check, params, rows);
  Tensor tokens = torch::stable::new_empty(logits, {rows}, ScalarType::Long);
  if (rows > 0) Sampler(logits, params).run(tokens.mutable_data_ptr<int64_t>());
  return tokens;
}

}  // namespace
}  // namespace paged_stream

STABLE_TORCH_LIBRARY_IMPL(paged_stream, CPU, m) {
  m.impl("sample_tokens", TORCH_BOX(&paged_stream::sample_tokens));
}
