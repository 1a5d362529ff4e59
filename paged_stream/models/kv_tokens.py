"""K and V of some tokens, out of their blocks, and how a row of them is laid out."""

from __future__ import annotations

from typing import NamedTuple

import torch

SCALE_BYTES = 4


def row_size(head_dim: int, dtype: torch.dtype) -> int:
    """Elements that one head of one token takes: in int8 its scale, a float32, ends the row."""
    return head_dim + SCALE_BYTES if dtype == torch.int8 else head_dim


class KVTokens(NamedTuple):
    """``key`` and ``value`` are [layers, tokens, kv_heads, row_size], on the host, in the dtype of
    the cache; keys are rotated to the positions of their tokens."""

    key: torch.Tensor
    value: torch.Tensor

    @property
    def num_tokens(self) -> int:
        return self.key.shape[1]

    @property
    def nbytes(self) -> int:
        return self.key.nbytes + self.value.nbytes
