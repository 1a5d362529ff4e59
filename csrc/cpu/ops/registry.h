// Objects that ops keep for later calls. Op arguments cannot be objects, so Python holds handles.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <utility>

#include "checks.h"

namespace paged_stream {

// Entries live until they are removed and no longer in use.
template <class T>
class Registry {
 public:
  static Registry& instance() {
    static auto* const registry = new Registry;  // outlives everything that Python frees at exit
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

  // name: the argument that holds the handle. maker: the op that returns such handles.
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
