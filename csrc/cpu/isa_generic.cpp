// Whatever the compiler's default target has: SSE2 on x86-64, NEON on ARM.

#include <cstdint>
#include <utility>

#include "kernels.h"

namespace paged_stream {
namespace generic {

constexpr char kIsaName[] = "generic";
constexpr int kLanes = 4;
constexpr int kNumVectorRegisters = 16;
constexpr int kPanelVectors = 2;
constexpr int kTallRows = 3;
constexpr int kTallPanels = 1;
constexpr int kWideRows = 1;
constexpr int kWidePanels = 2;
constexpr int kPrefetchBytes = 1024;

#include "kernels.inl"

}  // namespace generic

const Kernels& generic_kernels() { return generic::kKernels; }

}  // namespace paged_stream
