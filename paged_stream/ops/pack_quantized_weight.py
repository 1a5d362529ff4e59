"""Packing quantised weights for `linear`."""

from __future__ import annotations

from torch import Tensor

from paged_stream.ops.library import ops


def pack_quantized_weight(out: Tensor, blocks: list[Tensor], formats: list[str]) -> None:
    """Lay a quantised weight out for `linear`, without changing a number.

    Args:
        out: uint8 [`quantized_weight_bytes`], which is overwritten.
        blocks: up to four parts of the weight, one after the other: uint8 [rows, bytes], rows of
            blocks as GGUF files hold them. Every part but the last has a multiple of 16 rows.
        formats: of each part: ``"Q4_0"``, ``"Q4_1"``, ``"Q5_0"``, ``"Q5_1"``, ``"Q8_0"`` or
            ``"IQ4_NL"`` in blocks of 32 numbers; ``"Q2_K"`` to ``"Q6_K"`` or ``"IQ4_XS"`` in blocks
            of 256; or ``"Q4_Z"``, blocks of 32 in 20 bytes: float16 scale, zero point, a byte of
            nothing, and the codes as in Q4_0.
    """
    ops.pack_quantized_weight.default(out, blocks, ",".join(formats))
