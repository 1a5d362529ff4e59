// cpu_isa and set_cpu_isa: the instruction set that kernels use.

#include <torch/csrc/stable/library.h>
#include <torch/headeronly/util/Exception.h>

#include <string>

#include "isa/kernel_table.h"

namespace paged_stream {
namespace {

std::string cpu_isa() { return isa().name; }

// For tests and benchmarks: a serving process has no reason not to use the widest.
void set_cpu_isa(std::string name) {
  STD_TORCH_CHECK(use_isa(name.c_str()), "set_cpu_isa: this processor does not support \"", name,
                  "\"; the names are \"avx512bf16\", \"avx512vnni\", \"avx512\", \"avxvnni\", "
                  "\"avx2\" and \"generic\"");
}

}  // namespace
}  // namespace paged_stream

STABLE_TORCH_LIBRARY_IMPL(paged_stream, CompositeExplicitAutograd, m) {
  m.impl("cpu_isa", TORCH_BOX(&paged_stream::cpu_isa));
  m.impl("set_cpu_isa", TORCH_BOX(&paged_stream::set_cpu_isa));
}
