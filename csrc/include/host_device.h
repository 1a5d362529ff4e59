// For functions of plain arithmetic that kernels of every device share.
#pragma once

#if defined(__CUDACC__) || defined(__HIPCC__)
#define PAGED_STREAM_HOST_DEVICE __host__ __device__
#else
#define PAGED_STREAM_HOST_DEVICE
#endif

// Never a function of its own: the linker could keep one made of wider instructions than the
// processor has.
#define PAGED_STREAM_INLINE PAGED_STREAM_HOST_DEVICE inline __attribute__((always_inline))
