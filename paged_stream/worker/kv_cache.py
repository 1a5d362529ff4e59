"""The tensor that holds every block's K and V, allocated once."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class CachePlan:
    """Size of the KV cache: ``num_blocks`` of ``block_bytes`` each, over all layers."""

    num_blocks: int
    block_bytes: int


class KVCache:
    """Blocks of all layers: ``tensor`` is [layers, 2, blocks, kv_heads, block_size, head_dim].

    Pages of a CPU cache are touched only as blocks come into use, so an unused block costs
    address space, not memory.
    """

    def __init__(
        self,
        *,
        num_layers: int,
        num_blocks: int,
        num_kv_heads: int,
        block_size: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        shape = (num_layers, 2, num_blocks, num_kv_heads, block_size, head_dim)
        self.tensor = torch.zeros(shape, dtype=dtype, device=device)
        self.layers = [(layer[0], layer[1]) for layer in self.tensor]
