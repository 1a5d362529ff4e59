// Panels: the rows of a weight in groups of kLinearPanel, stored side by side as columns.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/linear.h"
#include "threads/parallel.h"

namespace paged_stream {

constexpr int64_t num_panels(int64_t out_features) {
  return (out_features + kLinearPanel - 1) / kLinearPanel;
}

// Calls copy(panel, column, row) for every row of a weight.
template <class Copy>
void for_each_row(int64_t out_features, const Copy& copy) {
  for_each_range(num_panels(out_features), 1, [&](int64_t begin, int64_t end) {
    for (int64_t panel = begin; panel < end; ++panel) {
      const int64_t first = panel * kLinearPanel;
      const int64_t columns = std::min<int64_t>(kLinearPanel, out_features - first);
      for (int64_t column = 0; column < columns; ++column) copy(panel, column, first + column);
    }
  });
}

}  // namespace paged_stream
