"""Weights in blocks of numbers that share a scale: the formats that `ops.linear` multiplies by."""

from __future__ import annotations

from typing import NamedTuple

import torch

from paged_stream import ops
from paged_stream.layers.large_pages import give_back


class BlockFormat(NamedTuple):
    """A format.

    Args:
        size: numbers in a block.
        num_bytes: of a block.
        scales: its bytes that are float16 numbers. All its values are multiples of these.
    """

    size: int
    num_bytes: int
    scales: slice


# By GGUF's names. Q4_Z is this project's: Q4_0 with two bytes behind the scale, the first of which
# is the zero point.
BLOCK_FORMATS = {
    "Q4_0": BlockFormat(32, 18, slice(0, 2)),
    "Q4_1": BlockFormat(32, 20, slice(0, 4)),
    "Q4_Z": BlockFormat(32, 20, slice(0, 2)),
    "Q5_0": BlockFormat(32, 22, slice(0, 2)),
    "Q5_1": BlockFormat(32, 24, slice(0, 4)),
    "Q8_0": BlockFormat(32, 34, slice(0, 2)),
    "IQ4_NL": BlockFormat(32, 18, slice(0, 2)),
    "Q2_K": BlockFormat(256, 84, slice(80, 84)),
    "Q3_K": BlockFormat(256, 110, slice(108, 110)),
    "Q4_K": BlockFormat(256, 144, slice(0, 4)),
    "Q5_K": BlockFormat(256, 176, slice(0, 4)),
    "Q6_K": BlockFormat(256, 210, slice(208, 210)),
    "IQ4_XS": BlockFormat(256, 136, slice(0, 2)),
}
# Rows of different formats follow each other in one weight if their numbers are multiples of this.
PART_ROWS = 16
_PIECE_BYTES = 2 << 20  # of blocks, which are packed at a time


class Blocks(NamedTuple):
    """Rows of a weight.

    Args:
        format: one of `BLOCK_FORMATS`.
        data: uint8 [rows, in_features / size * num_bytes].
    """

    format: str
    data: torch.Tensor

    @property
    def in_features(self) -> int:
        size, num_bytes, _ = BLOCK_FORMATS[self.format]
        return self.data.shape[1] // num_bytes * size

    def scales(self) -> torch.Tensor:
        """A view of the float16 numbers of all blocks: [rows, blocks, 1 or 2]."""
        _, num_bytes, scales = BLOCK_FORMATS[self.format]
        return self.data.unflatten(1, (-1, num_bytes))[:, :, scales].view(torch.float16)

    def values(self) -> torch.Tensor:
        """The numbers that the blocks stand for: float32 [rows, in_features]."""
        rows = torch.arange(len(self.data))
        return ops.embedding_rows(rows, pack_blocks([self]), self.in_features, torch.float32)


def packed_bytes(parts: list[tuple[str, int]], in_features: int) -> int:
    """Memory of a packed weight whose parts have these formats and numbers of rows."""
    formats, rows = zip(*parts, strict=True)
    return ops.quantized_weight_bytes(list(rows), in_features, list(formats))


def pack_blocks(
    parts: list[Blocks], out: torch.Tensor | None = None, *, consume: bool = False
) -> torch.Tensor:
    """Lay rows out for the kernels, one part after the other, without changing a number.

    Args:
        out: uint8 [`packed_bytes`] to write to; a new tensor by default.
        consume: give the memory of the parts back as they are packed; what they held is lost.
    """
    sizes, in_features = [(part.format, len(part.data)) for part in parts], parts[0].in_features
    if out is None:
        out = torch.empty(packed_bytes(sizes, in_features), dtype=torch.uint8)
    formats, rows = zip(*sizes, strict=True)
    first_row = 0
    for part in parts:
        step = max(1, _PIECE_BYTES // part.data[0].nbytes // PART_ROWS) * PART_ROWS
        for start in range(0, len(part.data), step):
            piece = part.data[start : start + step]
            ops.pack_quantized_weight(
                out, piece, first_row + start, list(rows), in_features, list(formats)
            )
            if consume:
                give_back(piece)
        first_row += len(part.data)
    return out
