"""A LoRA adapter, laid out for the ops that add what it gives."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple

import torch
from torch import Tensor

from paged_stream.ops.laid_out import LaidOut
from paged_stream.ops.library import ops


class Projection(IntEnum):
    """The products of a layer that an adapter may add to."""

    QKV = 0
    OUTPUT = 1
    UP = 2
    DOWN = 3


class LowRank(NamedTuple):
    """Adds ``scaling * up^T (down x)`` to some columns of a product.

    Args:
        layer: of the decoder.
        projection: of the layer.
        first_column: of the product.
        down: [rank, in_features], contiguous.
        up: [rank, columns], contiguous: transposed.
        scaling: what the product is multiplied by.
    """

    layer: int
    projection: Projection
    first_column: int
    down: Tensor
    up: Tensor
    scaling: float


class Adapter(LaidOut):
    """An adapter, checked and laid out for `add_adapters` and `decoder_layers` on the CPU.

    Args:
        parts: kept alive; those of one product share no columns.
        num_layers: of the decoder.
        dtype: of all weights, float32 or bfloat16.
    """

    def __init__(self, parts: Sequence[LowRank], num_layers: int, dtype: torch.dtype) -> None:
        weights, places = [], []
        for part in parts:
            weights += [part.down, part.up]
            places += [part.layer, int(part.projection), part.first_column]
        scalings = torch.tensor([part.scaling for part in parts], dtype=torch.float32)
        handle = ops.lay_out_adapter.default(
            weights, places, scalings, num_layers, dtype == torch.bfloat16
        )
        super().__init__(handle, ops.free_adapter.default)
