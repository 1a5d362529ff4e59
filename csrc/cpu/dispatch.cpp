// Chooses the instruction set once, at first use.

#include <torch/csrc/stable/library.h>
#include <torch/headeronly/util/Exception.h>

#include <atomic>
#include <cstring>
#include <string>

#include "kernels.h"

namespace paged_stream {
namespace {

bool is_supported(const Kernels& candidate) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("bmi2");
  if (&candidate == &avx2_kernels()) return avx2;
  if (&candidate == &avx512_kernels()) {
    return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  }
#endif
  return &candidate == &generic_kernels();
}

// The first supported one of that name, the widest of all when name is null.
const Kernels* find(const char* name) {
  const Kernels* const widest_first[] = {
#if defined(__x86_64__)
      &avx512_kernels(),
      &avx2_kernels(),
#endif
      &generic_kernels(),
  };
  for (const Kernels* candidate : widest_first) {
    if (name != nullptr && std::strcmp(name, candidate->name) != 0) continue;
    if (is_supported(*candidate)) return candidate;
  }
  return nullptr;
}

std::atomic<const Kernels*>& current() {
  static std::atomic<const Kernels*> chosen{find(nullptr)};
  return chosen;
}

}  // namespace

const Kernels& kernels() { return *current().load(std::memory_order_relaxed); }

bool set_kernels(const char* name) {
  const Kernels* found = find(name);
  if (found != nullptr) current().store(found, std::memory_order_relaxed);
  return found != nullptr;
}

namespace {

std::string cpu_isa() { return kernels().name; }

// For tests and benchmarks: a process that serves has no reason to leave the widest.
void set_cpu_isa(std::string name) {
  STD_TORCH_CHECK(set_kernels(name.c_str()), "set_cpu_isa: this machine has no \"", name,
                  "\" kernels, expected one of \"avx512\", \"avx2\", \"generic\"");
}

}  // namespace
}  // namespace paged_stream

STABLE_TORCH_LIBRARY_IMPL(paged_stream, CompositeExplicitAutograd, m) {
  m.impl("cpu_isa", TORCH_BOX(&paged_stream::cpu_isa));
  m.impl("set_cpu_isa", TORCH_BOX(&paged_stream::set_cpu_isa));
}
