"""A matrix in bitsandbytes' 4 bits: indices into a table of 16 numbers, and a factor for every run
of them, which may be an index into a table of 256 itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from paged_stream.system.short_text import short


@dataclass(frozen=True)
class NF4Matrix:
    """Numbers that are in no arithmetic series, so that blocks of integers cannot hold them.

    Args:
        read: gives a tensor by its name.
        has: tells whether there is one.
        name: of the tensor of indices; the others' names begin with it.
        kind: ``nf4`` or ``fp4``.
    """

    read: Callable[[str], torch.Tensor]
    has: Callable[[str], bool]
    name: str
    kind: str
    block_format = None

    @cached_property
    def _state(self) -> dict[str, Any]:
        """What the checkpoint says of the matrix.

        Raises:
            ValueError: it says nothing, or something that makes no sense.
        """
        data = bytes(self.read(f"{self.name}.quant_state.bitsandbytes__{self.kind}").tolist())
        try:
            state: dict[str, Any] = json.loads(data)
            sizes = [*state["shape"], state["blocksize"], state.get("nested_blocksize", 1)]
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{self.name}: its quant_state is damaged") from None
        if len(sizes) != 4 or not all(type(each) is int and each > 0 for each in sizes):
            raise ValueError(f"{self.name}: its quant_state has the sizes {short(sizes)}")
        return state

    @property
    def shape(self) -> list[int]:
        shape: list[int] = self._state["shape"]
        return shape

    def values(self) -> torch.Tensor:
        """The numbers: float32 [out_features, in_features]."""
        packed = self.read(self.name).flatten()
        indices = torch.stack([packed >> 4, packed & 15], dim=1).flatten()
        numbers = self.read(f"{self.name}.quant_map").float()[indices.int()]
        rows, columns = self.shape
        factors = self._factors().repeat_interleave(self._state["blocksize"])
        count = rows * columns
        return numbers[:count].mul_(factors[:count]).view(rows, columns)

    def _factors(self) -> torch.Tensor:
        factors = self.read(f"{self.name}.absmax")
        if not self.has(f"{self.name}.nested_absmax"):
            return factors.float()
        nested = self.read(f"{self.name}.nested_absmax").float()
        nested = nested.repeat_interleave(self._state["nested_blocksize"])[: len(factors)]
        numbers = self.read(f"{self.name}.nested_quant_map").float()[factors.int()]
        return numbers.mul_(nested) + self._state.get("nested_offset", 0.0)
