// Launcher of the sampler: validation, random numbers, work sharing.

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
// Beyond these, differences of float32 logits over the temperature leave the range of float64.
constexpr double kLeastTemperature = 1e-5, kMostTemperature = 1e30;

void check_temperatures(const Checker& check, const double* temperature, int64_t rows) {
  for (int64_t i = 0; i < rows; ++i) {
    const double value = temperature[i];
    check.require(value == 0.0 || (value >= kLeastTemperature && value <= kMostTemperature),
                  "temperature must be 0 or in [1e-5, 1e30], got ", value);
  }
}

int64_t sample_row(const Kernels& isa, SampleArgs args, const SamplingParameters& params,
                   int64_t row) {
  static thread_local GrowingBuffer<double> weights;
  static thread_local GrowingBuffer<VocabBlock> blocks;
  args.greedy = params.temperature[row] == 0.0;
  if (!args.greedy) {
    args.inv_temperature = 1.0 / params.temperature[row];
    args.log_min_p = std::log(params.min_p[row]);
    args.top_k = params.top_k[row];
    args.top_p = params.top_p[row];
    args.uniform = uniform(params.seeds[row], params.positions[row]);
    args.weights = weights.get(args.padded_blocks * kVocabBlock);
    args.blocks = blocks.get(args.padded_blocks);
  }
  return isa.pick_token(args);
}

Tensor sample_tokens(Tensor logits, std::vector<Tensor> sampling, Tensor positions) {
  constexpr Checker check("sample_tokens");
  const SamplingParameters params = read_sampling(check, logits, sampling, positions);
  const int64_t rows = logits.size(0), vocab = logits.size(1);
  check_temperatures(check, params.temperature, rows);
  Tensor tokens = torch::stable::new_empty(logits, {rows}, ScalarType::Long);
  if (rows == 0) return tokens;

  const Kernels& isa = kernels();
  const int64_t num_blocks = (vocab + kVocabBlock - 1) / kVocabBlock;
  SampleArgs args{};
  args.vocab = vocab;
  args.padded_blocks = (num_blocks + kMaximaPadding - 1) / kMaximaPadding * kMaximaPadding;
  static thread_local GrowingBuffer<float> all_maxima;
  float* const maxima = all_maxima.get(rows * args.padded_blocks);
  std::fill(maxima, maxima + rows * args.padded_blocks, -std::numeric_limits<float>::infinity());
  const float* const data = logits.const_data_ptr<float>();
  const int64_t stride = logits.stride(0), work = rows * vocab;
  // With more threads than rows, what touches every logit is shared more finely.
  const int64_t parts = std::min(num_blocks, (torch::stable::get_num_threads() + rows - 1) / rows);
  const auto find_maxima = [&](int64_t row, int64_t part) {
    isa.block_maxima(data + row * stride, vocab, num_blocks * part / parts,
                     num_blocks * (part + 1) / parts, maxima + row * args.padded_blocks);
  };
  if (parts > 1) {
    for_each_item(rows * parts, work, kMinLogitsPerThread,
                  [&](int64_t item) { find_maxima(item / parts, item % parts); });
  }
  int64_t* const out = tokens.mutable_data_ptr<int64_t>();
  for_each_item(rows, work, kMinLogitsPerThread, [&](int64_t row) {
    if (parts == 1) find_maxima(row, 0);
    SampleArgs part = args;
    part.logits = data + row * stride;
    part.maxima = maxima + row * args.padded_blocks;
    out[row] = sample_row(isa, part, params, row);
  });
  return tokens;
}

}  // namespace
}  // namespace paged_stream

STABLE_TORCH_LIBRARY_IMPL(paged_stream, CPU, m) {
  m.impl("sample_tokens", TORCH_BOX(&paged_stream::sample_tokens));
}
