// Launcher of the sampler: validation, random numbers, work sharing.

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "checks.h"
#include "kernels.h"
#include "parallel.h"

namespace paged_stream {
namespace {

constexpr int64_t kMinLogitsPerThread = 1 << 14;
// Beyond these, differences of float32 logits over the temperature leave the range of float64.
constexpr double kLeastTemperature = 1e-5, kMostTemperature = 1e30;

// splitmix64
uint64_t mix(uint64_t value) {
  value += 0x9E3779B97F4A7C15;
  value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9;
  value = (value ^ (value >> 27)) * 0x94D049BB133111EB;
  return value ^ (value >> 31);
}

// A number in [0, 1) that is a hash of its arguments.
double uniform(int64_t seed, int64_t position) {
  const uint64_t hash = mix(mix(static_cast<uint64_t>(seed)) ^ static_cast<uint64_t>(position));
  return static_cast<double>(hash >> 11) * 0x1p-53;
}

struct Params {
  const std::vector<double>&temperature, &min_p;
  const std::vector<int64_t>& top_k;
  const std::vector<double>& top_p;
  const std::vector<int64_t>&seeds, &positions;

  void validate(const Checker& check, size_t rows) const {
    const bool agree = temperature.size() == rows && min_p.size() == rows && top_k.size() == rows &&
                       top_p.size() == rows && seeds.size() == rows && positions.size() == rows;
    check.require(agree,
                  "every parameter must have one value per row of logits, of which there "
                  "are ",
                  rows);
    for (double value : temperature) {
      check.require(value == 0.0 || (value >= kLeastTemperature && value <= kMostTemperature),
                    "temperature must be 0 or in [1e-5, 1e30], got ", value);
    }
  }
};

int64_t sample_row(const Kernels& isa, SampleArgs args, const Params& params, size_t row) {
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

Tensor sample_tokens(Tensor logits, std::vector<double> temperature, std::vector<double> min_p,
                     std::vector<int64_t> top_k, std::vector<double> top_p,
                     std::vector<int64_t> seeds, std::vector<int64_t> positions) {
  constexpr Checker check("sample_tokens");
  check.shape(logits, "logits", "[N, vocab]", {kAny, kAny});
  check.dtype(logits, "logits", ScalarType::Float);
  check.dense(logits, "logits", 1);
  const int64_t rows = logits.size(0), vocab = logits.size(1);
  check.require(vocab > 0 && vocab <= std::numeric_limits<int32_t>::max(),
                "vocab must be in [1, 2^31), got ", vocab);
  const Params params{temperature, min_p, top_k, top_p, seeds, positions};
  params.validate(check, rows);
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
