// Chooses the instruction set once, at first use.

#include <atomic>
#include <cstring>

#include "isa/kernel_table.h"

namespace paged_stream {
namespace {

bool is_generic() { return true; }
#if defined(__x86_64__)
bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("f16c");
}
bool has_avxvnni() { return has_avx2() && __builtin_cpu_supports("avxvnni"); }
bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}
bool has_avx512vnni() { return has_avx512() && __builtin_cpu_supports("avx512vnni"); }
bool has_avx512bf16() { return has_avx512vnni() && __builtin_cpu_supports("avx512bf16"); }
// Twice as many products in a cycle as the float32 units. On Intel's processors it is half as many.
bool has_fast_avx512bf16() { return has_avx512bf16() && __builtin_cpu_is("amd"); }

// Put together here, in code that runs on every processor.
const Kernels kAvx512Bf16Kernels = [] {
  Kernels kernels = kAvx512Kernels;
  kernels.linear[static_cast<int>(DType::kBFloat16)] = kAvx512Bf16Linear;
  kernels.attention = attention_by_pairs;
  return kernels;
}();
constexpr Isa kAvx512Bf16{"avx512bf16", &kAvx512Bf16Kernels, &kAvx512VnniKernels};
#endif

struct Candidate {
  Isa isa;
  bool (*is_supported)();
};

constexpr Candidate kFastestFirst[] = {
#if defined(__x86_64__)
    {kAvx512Bf16, has_fast_avx512bf16},
    {{"avx512vnni", &kAvx512Kernels, &kAvx512VnniKernels}, has_avx512vnni},
    {{"avx512", &kAvx512Kernels, &kAvx512QuantizedKernels}, has_avx512},
    {{"avxvnni", &kAvx2Kernels, &kAvxVnniKernels}, has_avxvnni},
    {{"avx2", &kAvx2Kernels, &kAvx2QuantizedKernels}, has_avx2},
    {kAvx512Bf16, has_avx512bf16},  // by name
#endif
    {{"generic", &kGenericKernels, &kGenericQuantizedKernels}, is_generic},
};

// Returns the first supported ISA of that name, or the fastest one if name is null.
const Isa* find(const char* name) {
#if defined(__x86_64__)
  __builtin_cpu_init();
#endif
  for (const Candidate& candidate : kFastestFirst) {
    if (name != nullptr && std::strcmp(name, candidate.isa.name) != 0) continue;
    if (candidate.is_supported()) return &candidate.isa;
  }
  return nullptr;
}

std::atomic<const Isa*>& current() {
  static std::atomic<const Isa*> chosen{find(nullptr)};
  return chosen;
}

}  // namespace

const Isa& isa() { return *current().load(std::memory_order_relaxed); }

bool use_isa(const char* name) {
  const Isa* const found = find(name);
  if (found != nullptr) current().store(found, std::memory_order_relaxed);
  return found != nullptr;
}

}  // namespace paged_stream
