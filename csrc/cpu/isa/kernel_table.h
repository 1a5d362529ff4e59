// The kernels of each instruction set, and the set in use: what launchers call.
#pragma once

#include <cstdint>

#include "kernels/attention.h"
#include "kernels/elementwise.h"
#include "kernels/linear.h"
#include "kernels/low_rank.h"
#include "kernels/quantized_linear.h"
#include "kernels/rotary.h"
#include "kernels/sampling.h"
#include "number_types.h"

namespace paged_stream {

constexpr int kNumDTypes = 2;  // the first of DType, which models compute in

// The kernels for quantised weights of one instruction set.
struct QuantizedKernels {
  LinearFn linear[kNumGroupFormats];
  QuantizeFn quantize[kNumDTypes];
  int64_t max_tile_rows;
};

struct Kernels {
  // Converts a dtype to itself or to int8.
  RotateFn (*rotate)(DType from, DType to);
  RmsNormFn rms_norm[kNumDTypes];
  SiluAndMulFn silu_and_mul[kNumDTypes];
  LowRankFn low_rank[kNumDTypes];
  const AttentionKernels* (*attention)(DType dtype, DType cache_dtype, int head_dim);
  DenseKernels linear[kNumDTypes];
  TileMaximaFn tile_maxima;
  PickTokenFn pick_token;
};

extern const Kernels kGenericKernels;
extern const QuantizedKernels kGenericQuantizedKernels;
#if defined(__x86_64__)
extern const Kernels kAvx2Kernels, kAvx512Kernels;
extern const DenseKernels kAvx512Bf16Linear;
const AttentionKernels* attention_by_pairs(DType dtype, DType cache_dtype, int head_dim);
extern const QuantizedKernels kAvx2QuantizedKernels, kAvx512QuantizedKernels;
extern const QuantizedKernels kAvxVnniKernels, kAvx512VnniKernels;
#endif

// An instruction set by name.
struct Isa {
  const char* name;
  const Kernels* kernels;
  const QuantizedKernels* quantized;
};

// Returns the ISA in use: the fastest that the processor supports, unless set_cpu_isa chose
// another.
const Isa& isa();
// Selects an ISA; returns false if the processor does not support it.
bool use_isa(const char* name);
inline const Kernels& kernels() { return *isa().kernels; }

}  // namespace paged_stream
