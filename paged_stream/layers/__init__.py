"""Building blocks of decoder layers: tensors in, tensors out, no knowledge of streams."""
