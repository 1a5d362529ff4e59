"""K and V of some tokens, out of their blocks."""

from __future__ import annotations

from typing import NamedTuple

import torch


class KVTokens(NamedTuple):
    """``key`` and ``value`` are [layers, tokens, kv_heads, head_dim], on the host; keys are
    rotated to the positions of their tokens."""

    key: torch.Tensor
    value: torch.Tensor

    @property
    def nbytes(self) -> int:
        return self.key.nbytes + self.value.nbytes
