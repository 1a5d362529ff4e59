// dot4 for instruction sets without a byte dot product. Included after add_pair_products, which
// adds the products of the two signed 16-bit values in each lane.

// Adds the products of each lane's four bytes, unsigned in `codes` and signed in `input`.
template <int W>
PS_INLINE IVec<W> dot4(IVec<W> sum, UVec<W> codes, UVec<W> input) {
  typedef int16_t Pairs __attribute__((vector_size(4 * W)));
  const Pairs odd = (Pairs)input >> 8, even = (Pairs)((Pairs)input << 8) >> 8;
  sum = add_pair_products<W>(sum, codes & 0x00ff00ffu, (UVec<W>)even);
  return add_pair_products<W>(sum, (codes >> 8) & 0x00ff00ffu, (UVec<W>)odd);
}
