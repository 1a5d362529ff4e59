"""A matrix of 8-bit floats times scales: of the whole, of rows, or of rectangular blocks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class ScaledMatrix:
    """``number * scale``; no block of integers holds it without loss.

    Args:
        shape: [out_features, in_features].
        read_numbers: float8 of that shape.
        read_scales: one, [out_features, 1], or, with ``block``, one for each block.
        block: rows and columns that share a scale; those at the end may be fewer.
    """

    shape: list[int]
    read_numbers: Callable[[], torch.Tensor]
    read_scales: Callable[[], torch.Tensor]
    block: tuple[int, ...] | None = None
    block_format = None

    def values(self) -> torch.Tensor:
        """The numbers: float32 [out_features, in_features].

        Raises:
            ValueError: there are not as many scales as there have to be.
        """
        scales = self.read_scales().float()
        numbers = self.read_numbers().float()
        rows, columns = self.shape
        if self.block is not None and scales.dim() == 2:
            expected = [-(-rows // self.block[0]), -(-columns // self.block[1])]
            if list(scales.shape) != expected:
                raise ValueError(
                    f"there are scales for {list(scales.shape)} blocks, not {expected}"
                )
            scales = scales.repeat_interleave(self.block[0], 0)[:rows]
            return numbers.mul_(scales.repeat_interleave(self.block[1], 1)[:, :columns])
        if scales.numel() not in (1, rows):
            raise ValueError(f"it has {scales.numel()} scales for {rows} rows")
        return numbers.mul_(scales.view(-1, 1))
