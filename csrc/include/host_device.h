// Macros for plain arithmetic that the kernels of every device share.
#pragma once

#if defined(__CUDACC__) || defined(__HIPCC__)
#define PAGED_STREAM_HOST_DEVICE __host__ __device__
#else
#define PAGED_STREAM_HOST_DEVICE
#endif

// Always inlined: among out-of-line copies the linker could keep the one compiled for instructions
// that this processor lacks.
#define PAGED_STREAM_INLINE PAGED_STREAM_HOST_DEVICE inline __attribute__((always_inline))
