"""The tensor that holds every block's K and V, allocated once."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from paged_stream import ops
from paged_stream.kv_tokens import KVTokens, row_size
from paged_stream.layers.rotary import RotaryEmbedding


@dataclass(frozen=True, slots=True, kw_only=True)
class CachePlan:
    """Size of the KV cache: ``num_blocks`` of ``block_bytes`` each, over all layers."""

    num_blocks: int
    block_bytes: int


class KVCache:
    """Blocks of all layers: ``tensor`` is [layers, 2, blocks, kv_heads, block_size, row_size].

    A row is head_dim elements of a float ``dtype``, or in int8 as many and their scale.

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
        shape = (num_layers, 2, num_blocks, num_kv_heads, block_size, row_size(head_dim, dtype))
        self.tensor = torch.zeros(shape, dtype=dtype, device=device)
        self.layers = [(layer[0], layer[1]) for layer in self.tensor]

    def read(self, slots: torch.Tensor) -> KVTokens:
        """Copy the tokens at ``slots`` (int64 [N]) to the host."""
        num_layers, _, _, num_kv_heads, _, size = self.tensor.shape
        shape = (2, num_layers, len(slots), num_kv_heads, size)
        # One allocation per sequence: thousands are kept, and many small ones would leave holes.
        tokens = torch.empty(shape, dtype=self.tensor.dtype)
        for layer, (k_cache, v_cache) in enumerate(self.layers):
            tokens[0, layer], tokens[1, layer] = ops.gather_blocks(k_cache, v_cache, slots)
        return KVTokens(*tokens)

    def write(self, slots: torch.Tensor, tokens: KVTokens) -> None:
        """Copy the first N tokens to ``slots`` (int64 [N]); one whose slot is -1 is left out."""
        count, device = len(slots), self.tensor.device
        for (k_cache, v_cache), key, value in zip(self.layers, *tokens, strict=True):
            key, value = (x[:count].to(device) for x in (key, value))
            ops.scatter_blocks(key, value, k_cache, v_cache, slots)

    def copy_block(self, source: int, destination: int) -> None:
        mapping = torch.tensor([[source, destination]], device=self.tensor.device)
        ops.copy_blocks(self.tensor, mapping)

    def move(
        self,
        source: torch.Tensor,
        destination: torch.Tensor,
        distance: int,
        rotaries: list[RotaryEmbedding],
        *,
        interleaved: bool,
    ) -> None:
        """Move tokens from slots to slots, which may overlap, and turn their keys.

        Args:
            distance: positions that the tokens move by.
            rotaries: each layer's.
        """
        for (k_cache, v_cache), rotary in zip(self.layers, rotaries, strict=True):
            key, value = ops.gather_blocks(k_cache, v_cache, source)
            ops.scatter_blocks(key, value, k_cache, v_cache, destination)
            table = rotary.turn(distance, len(destination))
            ops.rotary_reindex(k_cache, destination, table, interleaved)
