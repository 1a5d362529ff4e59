// build_version: which sources the library was made of.

#include <torch/csrc/stable/library.h>

#include <string>

#if __has_include("source_digest.h")
#include "source_digest.h"  // from setup.py
#else
constexpr char kSourceDigest[] = "unknown";  // compiled by something else, for tests
#endif

namespace paged_stream {
namespace {

std::string build_version() { return kSourceDigest; }

}  // namespace
}  // namespace paged_stream

STABLE_TORCH_LIBRARY_IMPL(paged_stream, CompositeExplicitAutograd, m) {
  m.impl("build_version", TORCH_BOX(&paged_stream::build_version));
}
