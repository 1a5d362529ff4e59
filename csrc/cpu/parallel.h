// Work sharing and scratch memory for CPU launchers.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>

namespace paged_stream {

// Calls run(item) for every item, threads taking the next one as they get free. Work below
// min_work per thread is not worth waking it.
template <class Run>
void for_each_item(int64_t num_items, int64_t work, int64_t min_work, const Run& run) {
  int64_t threads = torch::stable::get_num_threads();
  threads = std::min({threads, num_items, std::max<int64_t>(1, work / min_work)});
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t worker = begin; worker < end; ++worker) {
      for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < num_items;) run(i);
    }
  });
}

// Memory that a thread keeps between calls; contents are undefined after each get().
template <class T>
class GrowingBuffer {
 public:
  T* get(int64_t size) {
    if (size > capacity_) {
      data_.reset(new T[size]());
      capacity_ = size;
    }
    return data_.get();
  }

 private:
  std::unique_ptr<T[]> data_;
  int64_t capacity_ = 0;
};

}  // namespace paged_stream
