#include "ops/layer_registry.h"

#include <utility>

namespace paged_stream {

int64_t Registry::add(std::shared_ptr<const Layers> layers) {
  const std::lock_guard lock(mutex_);
  entries_[++last_] = std::move(layers);
  return last_;
}

void Registry::remove(int64_t handle) {
  const std::lock_guard lock(mutex_);
  entries_.erase(handle);
}

std::shared_ptr<const Layers> Registry::get(const Checker& check, int64_t handle) {
  const std::lock_guard lock(mutex_);
  const auto entry = entries_.find(handle);
  check.require(entry != entries_.end(), "layers must be a handle from lay_out_layers, got ",
                handle);
  return entry->second;
}

Registry& registry() {
  static auto* const instance = new Registry;  // outlives whatever Python frees at exit
  return *instance;
}

}  // namespace paged_stream
