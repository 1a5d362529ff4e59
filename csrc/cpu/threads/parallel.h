// Work sharing and scratch memory for CPU launchers.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdint>
#include <memory>

#include "threads/worker_pool.h"

namespace paged_stream {

// Calls run(item) for every item, in parallel if there is enough work: with less than min_work per
// thread, waking a thread does not pay. An item should take some microseconds, hundreds at most:
// handing it out then costs little, and no thread waits long for the last one.
template <class Run>
void for_each_item(int64_t num_items, int64_t work, int64_t min_work, const Run& run) {
  const int64_t threads = torch::stable::get_num_threads();
  share_items(num_items, std::min(threads, work / min_work), run);
}

// Calls run(begin, end) for ranges of `grain`, an item's work, that make up [0, size), in parallel
// if there is more than one.
template <class Run>
void for_each_range(int64_t size, int64_t grain, const Run& run) {
  const int64_t threads = torch::stable::get_num_threads();
  if (threads == 1) grain = size;
  const int64_t num_items = size > grain ? (size + grain - 1) / grain : 1;
  share_items(num_items, threads,
              [&](int64_t i) { run(i * grain, std::min(size, (i + 1) * grain)); });
}

// Memory that a thread keeps between calls. Each get() leaves its contents undefined.
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
