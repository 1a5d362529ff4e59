// Launches kernels: on the device, or in tests/cuda_emulator when it compiles them.
#pragma once

#include <cstddef>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "device.cuh"

namespace paged_stream {

#if defined(PAGED_STREAM_EMULATE)

struct Stream {};

template <class... Params>
void launch(void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes, Stream,
            std::type_identity_t<Params>... args) {
  emulator::run_grid(grid, block, shared_bytes, [=] { kernel(args...); });
}

#else

using Stream = cudaStream_t;

inline void check_cuda(cudaError_t error, const std::string& what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // clears the error, or the next caller would report it as its own
  throw std::runtime_error("paged_stream: " + what + ": " + cudaGetErrorString(error));
}

// Launches the kernel on a non-empty grid, with shared_bytes of dynamic shared memory per thread
// block.
template <class... Params>
void launch(void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes, Stream stream,
            std::type_identity_t<Params>... args) {
  const auto* const function = reinterpret_cast<const void*>(kernel);
  constexpr size_t kSharedWithoutAsking = 48 * 1024;
  if (shared_bytes > kSharedWithoutAsking) {
    check_cuda(cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    static_cast<int>(shared_bytes)),
               "requesting " + std::to_string(shared_bytes) +
                   " bytes of shared memory per thread block failed");
  }
  void* pointers[] = {&args...};
  check_cuda(cudaLaunchKernel(function, grid, block, pointers, shared_bytes, stream),
             "kernel launch failed");
}

#endif

}  // namespace paged_stream
