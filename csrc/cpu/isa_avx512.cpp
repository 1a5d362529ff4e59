#if defined(__x86_64__)

#include <cstdint>
#include <utility>

#include "kernels.h"

#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,bmi2,prefer-vector-width=512")

namespace paged_stream {
namespace avx512 {

constexpr char kIsaName[] = "avx512";
constexpr int kLanes = 16;
constexpr int kNumVectorRegisters = 32;
constexpr int kPanelVectors = 4;
constexpr int kTallRows = 12;
constexpr int kTallPanels = 2;
constexpr int kWideRows = 6;
constexpr int kWidePanels = 4;
constexpr int kPrefetchBytes = 2048;

#include "kernels.inl"

}  // namespace avx512

const Kernels& avx512_kernels() { return avx512::kKernels; }

}  // namespace paged_stream

#endif
