"""A matrix of small integers whose rows have a scale, and perhaps a zero point, for every group of
columns: what AWQ, GPTQ and compressed-tensors come down to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch

_GROUP = 32  # columns of a block


@dataclass(frozen=True)
class IntegerMatrix:
    """``(code - zero) * scale``. Nothing is read before it is asked for.

    Args:
        shape: [out_features, in_features].
        bits: of a code.
        read_codes: uint8 [out_features, in_features].
        read_zeros: integers [out_features, groups], or [1, 1] if they are all the same.
        read_scales: floats [out_features, groups].
        read_groups: the group of each column, int64 [in_features]; by default groups of the same
            width follow each other.
    """

    shape: list[int]
    bits: int
    read_codes: Callable[[], torch.Tensor]
    read_zeros: Callable[[], torch.Tensor]
    read_scales: Callable[[], torch.Tensor]
    read_groups: Callable[[], torch.Tensor] | None = None

    @cached_property
    def block_format(self) -> str | None:
        """The format of blocks that hold the matrix without loss, if there is one."""
        scales, zeros = self.read_scales(), self.read_zeros()
        width, rest = divmod(self.shape[1], scales.shape[1])
        if rest or width % _GROUP or not self._groups_in_order(width):
            return None
        if not torch.equal(scales.half().double(), scales.double()):
            return None
        if self.bits == 8 and bool((zeros == 128).all()):
            return "Q8_0"
        if self.bits == 4 and bool(((zeros >= 0) & (zeros < 128)).all()):
            return "Q4_0" if bool((zeros == 8).all()) else "Q4_Z"
        return None

    def _groups_in_order(self, width: int) -> bool:
        if self.read_groups is None:
            return True
        return torch.equal(self.read_groups(), torch.arange(self.shape[1]) // width)

    def values(self) -> torch.Tensor:
        """The numbers: float32 [out_features, in_features].

        Raises:
            ValueError: groups of the same width do not make a row.
        """
        scales = self.read_scales().float()
        zeros = self.read_zeros().float().expand_as(scales)
        if self.read_groups is None:
            width, rest = divmod(self.shape[1], scales.shape[1])
            if rest:
                raise ValueError(f"{scales.shape[1]} groups do not divide {self.shape[1]} columns")
            groups = torch.arange(self.shape[1]) // width
        else:
            groups = self.read_groups()
        codes = self.read_codes().float()
        return codes.sub_(zeros[:, groups]).mul_(scales[:, groups])

    def blocks(self) -> torch.Tensor:
        """The matrix in `block_format`: uint8 [out_features, bytes]."""
        scales = self.read_scales().half()
        count = self.shape[1] // _GROUP
        repeats = count // scales.shape[1]
        parts = [_bytes_of(scales).repeat_interleave(repeats, dim=1)]
        codes = self.read_codes().unflatten(1, (count, _GROUP))
        if self.block_format == "Q8_0":
            parts.append(codes ^ 0x80)
        else:
            if self.block_format == "Q4_Z":
                zeros = self.read_zeros().expand_as(scales).to(torch.uint8)
                pairs = torch.stack([zeros, torch.zeros_like(zeros)], dim=-1)
                parts.append(pairs.repeat_interleave(repeats, dim=1))
            parts.append(codes[..., :16] | codes[..., 16:] << 4)
        return torch.cat(parts, dim=2).flatten(1)


def _bytes_of(halves: torch.Tensor) -> torch.Tensor:
    return halves.contiguous().view(torch.uint8).unflatten(1, (-1, 2))


def unpacked(words: torch.Tensor, bits: int, dim: int) -> torch.Tensor:
    """Unsigned integers out of 32-bit words, the lowest bits first, side by side along ``dim``.

    Returns:
        uint8, ``32 / bits`` times as long in ``dim``.
    """
    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    dim %= words.dim()
    each = words.unsqueeze(dim + 1) >> shifts.view(-1, *[1] * (words.dim() - dim - 1))
    return (each & (2**bits - 1)).to(torch.uint8).flatten(dim, dim + 1)
