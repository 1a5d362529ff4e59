"""Packing quantised weights for `linear`."""

from __future__ import annotations

from torch import Tensor

from paged_stream.ops.library import ops


def pack_quantized_weight(blocks: Tensor, format: str) -> Tensor:
    """Lay a weight in GGUF blocks out for `linear`, without changing a number.

    Args:
        blocks: uint8 [out_features, in_features / 32 * block_bytes], rows as GGUF files hold them.
        format: ``"Q4_0"`` (18 bytes: float16 scale, 32 codes), ``"Q4_1"`` (20 bytes: scale, min,
            codes) or ``"Q8_0"`` (34 bytes).

    Returns:
        uint8 [panels, in_features / 32, 16 * block_bytes], out_features padded to panels of 16.
    """
    return ops.pack_quantized_weight.default(blocks, format)
