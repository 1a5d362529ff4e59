// Tokens drawn from a row of logits.

#include <algorithm>
#include <limits>
#include <numeric>

#include "check.h"

namespace paged_stream::portable {
namespace {

struct Case {
  int vocab;
  double temperature, min_p;  // temperature 0 is greedy; min_p 0 keeps all
  int top_k;                  // 0 keeps all
  double top_p;
};

constexpr Case kCases[] = {
    {100, 0, 0, 0, 1},      {1000, 1, 0, 0, 1},      {1000, 0.7, 0, 40, 1},
    {5003, 1.3, 0, 0, 0.9}, {5003, 1, 0.05, 50, 1},  {64, 2, 0.01, 10, 0.5},
    {3, 1, 0, 0, 1},        {2048, 0.3, 0, 1, 0.99}, {2048, 1, 0.3, 0, 0.7},
};

int64_t pick(const Case& c, const std::vector<float>& logits, double uniform) {
  const int64_t num_tiles = (c.vocab + kVocabTile - 1) / kVocabTile;
  const int64_t padded = (num_tiles + kMaximaPadding - 1) / kMaximaPadding * kMaximaPadding;
  std::vector<float> maxima(padded, -std::numeric_limits<float>::infinity());
  kGenericKernels.tile_maxima(logits.data(), c.vocab, 0, num_tiles, maxima.data());
  std::vector<double> weights(padded * kVocabTile);
  std::vector<VocabTile> tiles(padded);
  SampleArgs args{};
  args.logits = logits.data();
  args.vocab = c.vocab;
  args.maxima = maxima.data();
  args.padded_tiles = padded;
  args.greedy = c.temperature == 0;
  args.inv_temperature = args.greedy ? 1 : 1 / c.temperature;
  args.log_min_p = std::log(c.min_p);
  args.top_k = c.top_k;
  args.top_p = c.top_p;
  args.uniform = uniform;
  args.weights = weights.data();
  args.tiles = tiles.data();
  return kGenericKernels.pick_token(args);
}

// Sorts all tokens, drops those that are not kept, and inverts the distribution in order of id.
int64_t expected_token(const Case& c, const std::vector<float>& logits, double uniform) {
  std::vector<int> ids(c.vocab);
  std::iota(ids.begin(), ids.end(), 0);
  std::sort(ids.begin(), ids.end(), [&](int a, int b) { return logits[a] > logits[b]; });
  if (c.temperature == 0) return ids[0];
  const double max = logits[ids[0]];
  const auto weight = [&](int id) { return std::exp((logits[id] - max) / c.temperature); };
  if (c.top_k > 0) ids.resize(std::min<size_t>(ids.size(), c.top_k));
  while (weight(ids.back()) < c.min_p) ids.pop_back();
  double total = 0, mass = 0;
  for (int id : ids) total += weight(id);
  size_t kept = 0;
  while (kept < ids.size() && mass < c.top_p * total) mass += weight(ids[kept++]);
  ids.resize(c.top_p < 1 ? kept : ids.size());
  total = c.top_p < 1 ? mass : total;
  std::sort(ids.begin(), ids.end());
  double sum = 0;
  for (int id : ids) {
    sum += weight(id);
    if (sum > uniform * total) return id;
  }
  return ids.back();
}

}  // namespace

void check_sampling() {
  Random random(4);
  for (const Case& c : kCases) {
    for (int repeat = 0; repeat < 50; ++repeat) {
      std::vector<float> logits = random.normals<float>(c.vocab);
      for (float& logit : logits) logit *= 3;
      const double uniform = random.uniform();
      expect_near("token of " + std::to_string(c.vocab),
                  static_cast<double>(pick(c, logits, uniform)),
                  static_cast<double>(expected_token(c, logits, uniform)), 0);
    }
  }
}

}  // namespace paged_stream::portable
