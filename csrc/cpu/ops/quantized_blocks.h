// Blocks of quantised numbers as GGUF files hold them, taken apart; and steps of packed weights, in
// one row. Plain code for any processor: each number passes here once, while loading.
#pragma once

#include <cstdint>
#include <string>

#include "kernels/quantized_linear.h"

namespace paged_stream {

// A format's blocks in a file: one step of the packed weight is one block.
struct BlockFormat {
  const char* name;
  GroupFormat format;
  int bytes;
};
constexpr BlockFormat kBlockFormats[kNumGroupFormats] = {
    {"Q4_0", GroupFormat::kQ4_0, 18},     {"Q4_1", GroupFormat::kQ4_1, 20},
    {"Q8_0", GroupFormat::kQ8_0, 34},     {"Q5_0", GroupFormat::kQ5_0, 22},
    {"Q5_1", GroupFormat::kQ5_1, 24},     {"Q4_Z", GroupFormat::kQ4_Z, 20},
    {"IQ4_NL", GroupFormat::kIQ4_NL, 18}, {"Q2_K", GroupFormat::kQ2_K, 84},
    {"Q3_K", GroupFormat::kQ3_K, 110},    {"Q4_K", GroupFormat::kQ4_K, 144},
    {"Q5_K", GroupFormat::kQ5_K, 176},    {"Q6_K", GroupFormat::kQ6_K, 210},
    {"IQ4_XS", GroupFormat::kIQ4_XS, 136}};

// Returns null if there is no such format.
const BlockFormat* find_block_format(const std::string& name);

// The parts of a block, as a GroupLayout describes them.
struct Block {
  uint8_t halves[4];        // one or two float16 numbers
  uint8_t scale_bytes[16];  // group by group
  uint8_t min_bytes[8];
  uint8_t codes[256];
};

// Takes a file's block apart.
void read_block(GroupFormat format, const uint8_t* from, Block& block);

// Puts a block into its column of a packed step, whose bytes are zero there.
void pack_block(const GroupLayout& layout, const Block& block, int64_t column, uint8_t* step);

// Computes the numbers of one column of a packed step: float32 [step_size].
void unpack_values(const GroupLayout& layout, const uint8_t* step, int64_t column, float* values);

}  // namespace paged_stream
