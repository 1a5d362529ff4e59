// dot4 for instruction sets without one for bytes; included after add_pair_products, which adds
// the products of the two signed 16-bit numbers in each lane.

// Adds the products of the four unsigned bytes in a lane of `codes` and the signed ones in `input`.
template <int W>
PS_INLINE IVec<W> dot4(IVec<W> sum, UVec<W> codes, UVec<W> input) {
  typedef int16_t Pairs __attribute__((vector_size(4 * W)));
  const Pairs odd = (Pairs)input >> 8, even = (Pairs)((Pairs)input << 8) >> 8;
  sum = add_pair_products<W>(sum, codes & 0x00ff00ffu, (UVec<W>)even);
  return add_pair_products<W>(sum, (codes >> 8) & 0x00ff00ffu, (UVec<W>)odd);
}
