#if defined(__x86_64__)

#include <cstdint>
#include <utility>

#include "kernels.h"

#pragma GCC target("avx2,fma,bmi2")

namespace paged_stream {
namespace avx2 {

constexpr char kIsaName[] = "avx2";
constexpr int kLanes = 8;
constexpr int kNumVectorRegisters = 16;
constexpr int kPanelVectors = 2;
constexpr int kTallRows = 6;
constexpr int kTallPanels = 1;
constexpr int kWideRows = 3;
constexpr int kWidePanels = 2;
constexpr int kPrefetchBytes = 1024;

#include "kernels.inl"

}  // namespace avx2

const Kernels& avx2_kernels() { return avx2::kKernels; }

}  // namespace paged_stream

#endif
