#include "ops/quantized_blocks.h"

#include <cstring>

namespace paged_stream {
namespace {

// Fills codes k and k + 16 of a group from the halves of 16 bytes.
void read_halves(const uint8_t* bytes, uint8_t* codes) {
  for (int i = 0; i < 16; ++i) {
    codes[i] = bytes[i] & 15;
    codes[i + 16] = bytes[i] >> 4;
  }
}

// Adds the fifth bits of a group's codes, from 32 bits.
void add_fifth_bits(const uint8_t* bytes, uint8_t* codes) {
  for (int i = 0; i < 32; ++i) codes[i] |= (bytes[i / 8] >> i % 8 & 1) << 4;
}

// Unpacks eight scales and eight mins of six bits each from 12 bytes.
void read_six_bit_pairs(const uint8_t* from, uint8_t* scales, uint8_t* mins) {
  for (int i = 0; i < 4; ++i) {
    scales[i] = from[i] & 63;
    mins[i] = from[i + 4] & 63;
    scales[i + 4] = (from[i + 8] & 15) | (from[i] >> 6) << 4;
    mins[i + 4] = from[i + 8] >> 4 | (from[i + 4] >> 6) << 4;
  }
}

// Q4_K and Q5_K: the halves of 32 bytes are the codes of two groups.
void read_q4_k(const uint8_t* from, bool has_fifth_bits, Block& block) {
  std::memcpy(block.halves, from, 4);
  read_six_bit_pairs(from + 4, block.scale_bytes, block.min_bytes);
  const uint8_t* high = from + 16;
  const uint8_t* low = has_fifth_bits ? from + 48 : from + 16;
  for (int k = 0; k < 256; ++k) {
    const int group = k / 32, i = k % 32;
    block.codes[k] = low[group / 2 * 32 + i] >> 4 * (group % 2) & 15;
    if (has_fifth_bits) block.codes[k] |= (high[i] >> group & 1) << 4;
  }
}

void read_q6_k(const uint8_t* from, Block& block) {
  const uint8_t *low = from, *high = from + 128;
  for (int k = 0; k < 256; ++k) {
    const int half = k / 128, quarter = k % 128 / 32, i = k % 32;
    const int bits = low[64 * half + 32 * (quarter % 2) + i] >> 4 * (quarter / 2) & 15;
    block.codes[k] = bits | (high[32 * half + i] >> 2 * quarter & 3) << 4;
  }
  std::memcpy(block.scale_bytes, from + 192, 16);
  std::memcpy(block.halves, from + 208, 2);
}

void read_q2_k(const uint8_t* from, Block& block) {
  std::memcpy(block.scale_bytes, from, 16);
  for (int k = 0; k < 256; ++k) {
    block.codes[k] = from[16 + k / 128 * 32 + k % 32] >> 2 * (k % 128 / 32) & 3;
  }
  std::memcpy(block.halves, from + 80, 4);
}

void read_q3_k(const uint8_t* from, Block& block) {
  const uint8_t *high = from, *low = from + 32, *scales = from + 96;
  for (int k = 0; k < 256; ++k) {
    const int bits = low[k / 128 * 32 + k % 32] >> 2 * (k % 128 / 32) & 3;
    block.codes[k] = bits | (high[k % 32] >> k / 32 & 1) << 2;
  }
  for (int i = 0; i < 16; ++i) {
    const int lower = scales[i % 8] >> 4 * (i / 8) & 15;
    const int scale = lower | (scales[8 + i % 4] >> 2 * (i / 4) & 3) << 4;
    block.scale_bytes[i] = static_cast<uint8_t>(scale - 32);
  }
  std::memcpy(block.halves, from + 108, 2);
}

void read_iq4_xs(const uint8_t* from, Block& block) {
  std::memcpy(block.halves, from, 2);
  const int high = from[2] | from[3] << 8;
  for (int group = 0; group < 8; ++group) {
    const int lower = from[4 + group / 2] >> 4 * (group % 2) & 15;
    block.scale_bytes[group] = static_cast<uint8_t>((lower | (high >> 2 * group & 3) << 4) - 32);
    read_halves(from + 8 + 16 * group, block.codes + 32 * group);
  }
}

// Where a code's bits are, see quantized_linear.h.
struct Bits {
  int line, shift, mask;
};
Bits low_bits(int bits, int quad) {
  if (bits == 8) return {quad, 0, 255};
  if (bits >= 4) return {quad % 4, 4 * (quad / 4), 15};
  return {quad / 4, 2 * (quad % 4), 3};
}
// For 3, 5 and 6 bits, the bits above the low ones.
Bits high_bits(int bits, int quad) {
  if (bits == 6) return {4 + quad / 4, 2 * (quad % 4), 3};
  return {bits == 5 ? 4 : 2, quad, 1};
}
bool has_high_bits(int bits) { return bits == 3 || bits == 5 || bits == 6; }
int num_low_bits(int bits) { return bits >= 8 ? 8 : bits >= 4 ? 4 : 2; }

int64_t place(const Bits& bits, int64_t column, int k) {
  return 4 * (bits.line * kLinearPanel + column) + k % 4;
}

float widen_half(const uint8_t* from) {
  uint16_t half;
  std::memcpy(&half, from, sizeof(half));
  const uint32_t magnitude = (half & 0x7fffu) << 13;
  float value;
  std::memcpy(&value, &magnitude, sizeof(value));
  value *= 0x1p112f;
  return half & 0x8000u ? -value : value;
}

}  // namespace

const BlockFormat* find_block_format(const std::string& name) {
  for (const BlockFormat& format : kBlockFormats) {
    if (name == format.name) return &format;
  }
  return nullptr;
}

void read_block(GroupFormat format, const uint8_t* from, Block& block) {
  switch (format) {
    case GroupFormat::kQ4_0:
    case GroupFormat::kIQ4_NL:
      std::memcpy(block.halves, from, 2);
      return read_halves(from + 2, block.codes);
    case GroupFormat::kQ4_Z:
      std::memcpy(block.halves, from, 2);
      block.min_bytes[0] = from[2] & 15;
      return read_halves(from + 4, block.codes);
    case GroupFormat::kQ4_1:
      std::memcpy(block.halves, from, 4);
      return read_halves(from + 4, block.codes);
    case GroupFormat::kQ5_0:
      std::memcpy(block.halves, from, 2);
      read_halves(from + 6, block.codes);
      return add_fifth_bits(from + 2, block.codes);
    case GroupFormat::kQ5_1:
      std::memcpy(block.halves, from, 4);
      read_halves(from + 8, block.codes);
      return add_fifth_bits(from + 4, block.codes);
    case GroupFormat::kQ8_0:
      std::memcpy(block.halves, from, 2);
      // The byte dot product needs unsigned codes.
      for (int i = 0; i < 32; ++i) block.codes[i] = from[2 + i] ^ 0x80;
      return;
    case GroupFormat::kQ2_K:
      return read_q2_k(from, block);
    case GroupFormat::kQ3_K:
      return read_q3_k(from, block);
    case GroupFormat::kQ4_K:
      return read_q4_k(from, false, block);
    case GroupFormat::kQ5_K:
      return read_q4_k(from, true, block);
    case GroupFormat::kQ6_K:
      return read_q6_k(from, block);
    case GroupFormat::kIQ4_XS:
      return read_iq4_xs(from, block);
  }
}

void pack_block(const GroupLayout& layout, const Block& block, int64_t column, uint8_t* step) {
  for (int half = 0; half < layout.halves(); ++half) {
    std::memcpy(step + 2 * (half * kLinearPanel + column), block.halves + 2 * half, 2);
  }
  uint8_t* group = step + 2 * layout.halves() * kLinearPanel;
  for (int g = 0; g < layout.groups; ++g, group += layout.group_bytes() * kLinearPanel) {
    uint8_t* at = group + column;
    for (int i = 0; i < layout.scale_bytes; ++i, at += kLinearPanel) {
      *at = block.scale_bytes[g * layout.scale_bytes + i];
    }
    if (layout.min_bytes() > 0) *at = block.min_bytes[g], at += kLinearPanel;
    uint8_t* lines = at - column;
    for (int k = 0; k < kGroupSize; ++k) {
      const int code = block.codes[g * kGroupSize + k];
      const Bits low = low_bits(layout.bits, k / 4);
      lines[place(low, column, k)] |= (code & low.mask) << low.shift;
      if (!has_high_bits(layout.bits)) continue;
      const Bits high = high_bits(layout.bits, k / 4);
      lines[place(high, column, k)] |= (code >> num_low_bits(layout.bits)) << high.shift;
    }
  }
}

void unpack_values(const GroupLayout& layout, const uint8_t* step, int64_t column, float* values) {
  const float first = widen_half(step + 2 * column);
  const float second = layout.halves() == 2 ? widen_half(step + 2 * (kLinearPanel + column)) : 0;
  const uint8_t* group = step + 2 * layout.halves() * kLinearPanel;
  for (int g = 0; g < layout.groups; ++g, group += layout.group_bytes() * kLinearPanel) {
    const uint8_t* min_byte = group + layout.scale_bytes * kLinearPanel + column;
    const uint8_t* lines = min_byte - column + layout.min_bytes() * kLinearPanel;
    for (int k = 0; k < kGroupSize; ++k) {
      float scale = first, min = 0;
      if (layout.scale_bytes > 0) {
        const uint8_t byte = group[k * layout.scale_bytes / kGroupSize * kLinearPanel + column];
        const bool is_nibble = layout.min == MinKind::kMinNibble;
        scale *= is_nibble ? byte & 15 : static_cast<int8_t>(byte);
        if (is_nibble) min = second * (byte >> 4);
      }
      if (layout.min == MinKind::kMinHalf) min = -second;
      if (layout.min == MinKind::kMinByte) min = second * *min_byte;
      if (layout.min == MinKind::kZeroByte) min = scale * *min_byte;
      const Bits low = low_bits(layout.bits, k / 4);
      int code = lines[place(low, column, k)] >> low.shift & low.mask;
      if (has_high_bits(layout.bits)) {
        const Bits high = high_bits(layout.bits, k / 4);
        code |= (lines[place(high, column, k)] >> high.shift & high.mask)
                << num_low_bits(layout.bits);
      }
      if (layout.has_table) code = kCodeTable[code];
      values[g * kGroupSize + k] = scale * static_cast<float>(code - layout.zero_point) - min;
    }
  }
}

}  // namespace paged_stream
