"""Packing quantised weights for `linear`."""

from __future__ import annotations

from torch import Tensor

from paged_stream.ops.library import ops


def pack_quantized_weight(
    out: Tensor,
    blocks: Tensor,
    first_row: int,
    rows: list[int],
    in_features: int,
    formats: list[str],
) -> None:
    """Lay rows of a quantised weight out for `linear`, without changing a number.

    Args:
        out: uint8 [`quantized_weight_bytes`], in which the place of these rows is overwritten.
        blocks: uint8 [rows, bytes], rows of blocks as GGUF files hold them, all of one part of the
            weight. Their number is a multiple of 16, unless they end with their part.
        first_row: where they are in the weight; a multiple of 16.
        rows: of each of the weight's parts, of which there are up to four. Every part but the last
            has a multiple of 16 rows.
        formats: of each part: ``"Q4_0"``, ``"Q4_1"``, ``"Q5_0"``, ``"Q5_1"``, ``"Q8_0"`` or
            ``"IQ4_NL"`` in blocks of 32 numbers; ``"Q2_K"`` to ``"Q6_K"`` or ``"IQ4_XS"`` in blocks
            of 256; or ``"Q4_Z"``, blocks of 32 in 20 bytes: float16 scale, zero point, a byte of
            nothing, and the codes as in Q4_0.
    """
    ops.pack_quantized_weight.default(out, blocks, first_row, rows, in_features, ",".join(formats))
