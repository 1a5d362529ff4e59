"""Packing quantised weights for `linear`."""

from __future__ import annotations

from torch import Tensor

from paged_stream.ops.library import ops


def pack_quantized_weight(groups: Tensor, format: str) -> Tensor:
    """Lay a quantised weight out for `linear`, without changing a number.

    Args:
        groups: uint8 [out_features, in_features / 32 * group_bytes], rows as GGUF
            files hold them, which call a group of 32 codes a block.
        format: ``"Q4_0"`` (18 bytes: float16 scale, 32 codes), ``"Q4_1"`` (20 bytes: scale, min,
            codes) or ``"Q8_0"`` (34 bytes).

    Returns:
        uint8 [panels, in_features / 32, 16 * group_bytes], out_features padded to panels of 16.
    """
    return ops.pack_quantized_weight.default(groups, format)
