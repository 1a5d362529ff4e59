// What ops have laid out for later calls. Ops know no objects, so Python holds numbers.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <utility>

#include "checks.h"

namespace paged_stream {

// Entries live until they are removed and nobody uses them any more.
template <class T>
class Registry {
 public:
  static Registry& instance() {
    static auto* const registry = new Registry;  // outlives whatever Python frees at exit
    return *registry;
  }

  int64_t add(std::shared_ptr<const T> entry) {
    const std::lock_guard lock(mutex_);
    entries_[++last_] = std::move(entry);
    return last_;
  }

  void remove(int64_t handle) {
    const std::lock_guard lock(mutex_);
    entries_.erase(handle);
  }

  // name: of the argument that holds the handle; maker: of the op that gives such handles.
  std::shared_ptr<const T> get(const Checker& check, const char* name, const char* maker,
                               int64_t handle) {
    const std::lock_guard lock(mutex_);
    const auto entry = entries_.find(handle);
    check.require(entry != entries_.end(), name, " must be a handle from ", maker, ", got ",
                  handle);
    return entry->second;
  }

 private:
  std::mutex mutex_;
  std::unordered_map<int64_t, std::shared_ptr<const T>> entries_;
  int64_t last_ = 0;
};

}  // namespace paged_stream
