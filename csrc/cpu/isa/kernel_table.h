// All kernels of one instruction set, and the instruction set in use: what launchers call.
#pragma once

#include <cstdint>

#include "kernels/attention.h"
#include "kernels/elementwise.h"
#include "kernels/linear.h"
#include "kernels/quantized_linear.h"
#include "kernels/rotary.h"
#include "kernels/sampling.h"
#include "number_types.h"

namespace paged_stream {

constexpr int kNumDTypes = 2;  // that models compute in, the first ones of DType

// Kernels of quantised weights for one instruction set.
struct QuantizedKernels {
  LinearFn linear[kNumGroupFormats];
  QuantizeFn quantize[kNumDTypes];
  int64_t max_tile_rows;
};

struct Kernels {
  // From a dtype to the same, or to int8.
  RotateFn (*rotate)(DType from, DType to);
  RmsNormFn rms_norm[kNumDTypes];
  SiluAndMulFn silu_and_mul[kNumDTypes];
  const AttentionKernels* (*attention)(DType dtype, DType cache_dtype, int head_dim);
  LinearFn linear[kNumDTypes];
  PackRowsFn pack_rows[kNumDTypes];
  int64_t max_tile_rows;
  TileMaximaFn tile_maxima;
  PickTokenFn pick_token;
};

extern const Kernels kGenericKernels;
extern const QuantizedKernels kGenericQuantizedKernels;
#if defined(__x86_64__)
extern const Kernels kAvx2Kernels, kAvx512Kernels;
extern const QuantizedKernels kAvx2QuantizedKernels, kAvx512QuantizedKernels;
extern const QuantizedKernels kAvxVnniKernels, kAvx512VnniKernels;
#endif

// What one name of an instruction set stands for.
struct Isa {
  const char* name;
  const Kernels* kernels;
  const QuantizedKernels* quantized;
};

// The one in use: the widest that the processor has, unless set_cpu_isa chose another.
const Isa& isa();
// Makes another one the one in use; false if the processor does not have it.
bool use_isa(const char* name);
inline const Kernels& kernels() { return *isa().kernels; }

}  // namespace paged_stream
