// Attention over runs of scattered keys: few rows and many, hidden keys, ALiBi, softcaps, int8.

#include <algorithm>
#include <limits>
#include <numeric>

#include "check.h"

namespace paged_stream::portable {
namespace {

constexpr double kLog2E = 1.4426950408889634;

struct Case {
  int rows, head_dim;
  std::vector<int> runs;  // number of keys in each
  bool has_alibi;
  float softcap;
};

// Rows of a cache in any order, and their exact values.
template <class Q, bool Int8>
struct Cache {
  int head_dim, row_size;
  std::vector<Q> plain;
  std::vector<int8_t> quantized;
  std::vector<double> values;  // [keys, head_dim]

  Cache(int num_keys, int dim, Random& random)
      : head_dim(dim), row_size(Int8 ? dim + static_cast<int>(kScaleBytes) : dim) {
    plain = random.normals<Q>(Int8 ? 0 : num_keys * dim);
    quantized.resize(Int8 ? num_keys * row_size : 0);
    for (int key = 0; key < num_keys; ++key) {
      const float scale = static_cast<float>(0.005 + 0.02 * random.uniform());
      for (int d = 0; d < dim; ++d) {
        if constexpr (Int8) {
          quantized[key * row_size + d] = static_cast<int8_t>(random.below(255) - 127);
          values.push_back(double{scale} * quantized[key * row_size + d]);
        } else {
          values.push_back(to_float(plain[key * dim + d]));
        }
      }
      if constexpr (Int8) std::memcpy(&quantized[key * row_size + dim], &scale, sizeof(scale));
    }
  }

  const void* data() const {
    if constexpr (Int8) return quantized.data();
    return plain.data();
  }
};

struct Inputs {
  std::vector<int> order;                   // of the keys in the cache
  std::vector<std::vector<RowView>> views;  // [runs][rows]
};

Inputs make_inputs(const Case& c, Random& random) {
  Inputs inputs;
  inputs.order.resize(std::accumulate(c.runs.begin(), c.runs.end(), 0));
  std::iota(inputs.order.begin(), inputs.order.end(), 0);
  for (size_t i = inputs.order.size(); i > 1; --i) {
    std::swap(inputs.order[i - 1], inputs.order[random.below(static_cast<int>(i))]);
  }
  for (size_t i = 0; i < c.runs.size(); ++i) {
    std::vector<RowView> views(c.rows);
    for (RowView& view : views) {
      view.begin = random.below(c.runs[i]);
      view.end = view.begin + 1 + random.below(c.runs[i] - view.begin);
      // In later runs a row may see no key; in the first run, every row sees at least one.
      if (i > 0 && random.below(4) == 0) view.end = view.begin;
      if (random.below(3) == 0) view.begin = 0, view.end = c.runs[i];
      view.slope = c.has_alibi ? static_cast<float>(0.2 * random.uniform()) : 0;
      view.distance = static_cast<float>(c.runs[i] - random.below(3));
    }
    inputs.views.push_back(views);
  }
  return inputs;
}

// Computes one row's output from all runs at once.
template <class K>
std::vector<double> expected_row(const Case& c, const Inputs& inputs, int row, const double* query,
                                 const K& keys, const K& values) {
  std::vector<double> scores, output(c.head_dim, 0.0);
  std::vector<int> seen;
  int first = 0;
  for (size_t i = 0; i < c.runs.size(); first += c.runs[i++]) {
    const RowView& view = inputs.views[i][row];
    for (int key = view.begin; key < view.end; ++key) {
      const int place = inputs.order[first + key];
      double score = 0;
      for (int d = 0; d < c.head_dim; ++d) score += query[d] * keys.values[place * c.head_dim + d];
      score /= std::sqrt(c.head_dim);
      if (c.softcap != 0) score = c.softcap * std::tanh(score / c.softcap);
      scores.push_back(score + (key - view.distance) * view.slope / kLog2E);
      seen.push_back(place);
    }
  }
  const double max = *std::max_element(scores.begin(), scores.end());
  double sum = 0;
  for (double& score : scores) sum += score = std::exp(score - max);
  for (size_t i = 0; i < seen.size(); ++i) {
    for (int d = 0; d < c.head_dim; ++d) {
      output[d] += scores[i] / sum * values.values[seen[i] * c.head_dim + d];
    }
  }
  return output;
}

// The states of the rows, once per part to merge, in one allocation.
class States {
 public:
  States(int rows, int dim, int parts)
      : rows_(rows), stride_(padded_rows(rows) * (dim + 2)), memory_(stride_ * parts, 0.0f) {
    for (int part = 0; part < parts; ++part) {
      std::fill_n(at(part).max, rows, -std::numeric_limits<float>::infinity());
    }
  }

  SoftmaxState at(int part) {
    float* memory = memory_.data() + part * stride_;
    const int64_t rows = padded_rows(rows_);
    return {rows_, memory, memory + rows, memory + 2 * rows};
  }

 private:
  int rows_;
  int64_t stride_;
  std::vector<float> memory_;
};

// merges: each run has its own state.
template <class Q, bool Int8>
void check(const Case& c, bool merges, Random& random) {
  const DType cache_dtype = Int8 ? DType::kInt8 : kDTypeOf<Q>;
  const AttentionKernels& kernels =
      *kGenericKernels.attention(kDTypeOf<Q>, cache_dtype, c.head_dim);
  const int dim = kernels.padded_dim(c.head_dim);
  const Inputs inputs = make_inputs(c, random);
  const int num_keys = static_cast<int>(inputs.order.size());
  const Cache<Q, Int8> keys(num_keys, c.head_dim, random), values(num_keys, c.head_dim, random);
  const auto query = random.normals<Q>(c.rows * c.head_dim);
  std::vector<float> packed(padded_rows(c.rows) * dim);
  const float factor = static_cast<float>(kLog2E / std::sqrt(c.head_dim));
  for (int row = 0; row < c.rows; ++row) {
    kernels.pack_query(&query[row * c.head_dim], c.head_dim, &packed[row * dim]);
  }
  std::vector<float> scores(kMaxRowsDirect * kRunKeys), packed_k(kRunKeys * dim),
      packed_v(kRunKeys * dim);
  const int num_parts = merges ? static_cast<int>(c.runs.size()) : 1;
  States states(c.rows, dim, num_parts);
  int first = 0;
  for (size_t i = 0; i < c.runs.size(); first += c.runs[i++]) {
    std::vector<int64_t> offsets;
    for (int key = 0; key < c.runs[i]; ++key) {
      offsets.push_back(int64_t{inputs.order[first + key]} * keys.row_size);
    }
    offsets.resize(offsets.size() + kKeyPadding, offsets.back());
    const KeyRun run{keys.data(), values.data(),          offsets.data(), c.runs[i], packed.data(),
                     factor,      inputs.views[i].data(), c.has_alibi,    c.softcap};
    const auto attend = c.rows <= kMaxRowsDirect ? kernels.attend_direct : kernels.attend_packed;
    attend(run, c.head_dim, states.at(merges ? static_cast<int>(i) : 0),
           {scores.data(), packed_k.data(), packed_v.data()});
  }
  for (int part = 1; part < num_parts; ++part) {
    kernels.merge(states.at(0), states.at(part), c.head_dim);
  }
  for (int row = 0; row < c.rows; ++row) {
    std::vector<Q> out(c.head_dim);
    kernels.write_output(states.at(0).acc + row * dim, states.at(0).sum[row], c.head_dim,
                         out.data());
    std::vector<double> exact(c.head_dim);
    for (int d = 0; d < c.head_dim; ++d) exact[d] = to_float(query[row * c.head_dim + d]);
    const auto expected = expected_row(c, inputs, row, exact.data(), keys, values);
    for (int d = 0; d < c.head_dim; ++d) {
      const double tolerance = kRounding<Q> * std::abs(expected[d]) + 1e-5;
      expect_near("attention, " + std::to_string(c.rows) + " rows of " +
                      std::to_string(c.head_dim) + (Int8 ? " in int8" : ""),
                  to_float(out[d]), expected[d], tolerance);
    }
  }
}

}  // namespace

void check_attention() {
  Random random(3);
  for (const int rows : {1, 2, 3, 4, 7, 9, 14}) {
    for (const int head_dim : {8, 40, 64, 80, 128, 256}) {
      for (const bool merges : {false, true}) {
        const Case cases[] = {
            {rows, head_dim, {37, 128, 1, 64}, false, 0},
            {rows, head_dim, {50, 20}, true, 0},
            {rows, head_dim, {50, 20}, false, 2.5f},
        };
        for (const Case& c : cases) {
          check<float, false>(c, merges, random);
          check<float, true>(c, merges, random);
          check<bfloat16, false>(c, merges, random);
          check<bfloat16, true>(c, merges, random);
        }
      }
    }
  }
}

}  // namespace paged_stream::portable
