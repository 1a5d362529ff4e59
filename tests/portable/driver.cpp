// Runs the portable kernels (csrc/cpu/isa/generic.cpp) without torch, on the compiler's target, and
// compares them with plain loops. Exits with 1 if any result is wrong.

#include <cstdio>

#include "check.h"

namespace paged_stream::portable {
namespace {

int64_t num_checks = 0, num_failures = 0;

}  // namespace

void expect_near(const std::string& what, double result, double expected, double tolerance) {
  ++num_checks;
  if (std::abs(result - expected) <= tolerance) return;
  if (++num_failures > 20) return;
  std::printf("%s: got %.9g, expected %.9g within %.3g\n", what.c_str(), result, expected,
              tolerance);
}

}  // namespace paged_stream::portable

int main() {
  using namespace paged_stream::portable;
  check_elementwise();
  check_linear();
  check_attention();
  check_sampling();
  std::printf("%lld results, %lld of them wrong\n", static_cast<long long>(num_checks),
              static_cast<long long>(num_failures));
  return num_checks == 0 || num_failures != 0;
}
