"""The tensor that holds every block's K and V, allocated once."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from paged_stream import ops
from paged_stream.layers.large_pages import resident_bytes, zeros_in_large_pages
from paged_stream.layers.rotary import RotaryEmbedding
from paged_stream.models.kv_tokens import KVTokens, row_size
from paged_stream.worker.staging import to_device


@dataclass(frozen=True, slots=True, kw_only=True)
class CachePlan:
    """Size of the KV cache: ``num_blocks`` of ``block_bytes`` each, over all layers."""

    num_blocks: int
    block_bytes: int

    @property
    def num_bytes(self) -> int:
        return self.num_blocks * self.block_bytes


class KVCache:
    """Blocks of all layers: ``tensor`` is [layers, 2, blocks, kv_heads, block_size, row_size].

    A row is head_dim elements of a float ``dtype`` (of 8 bits too), or in int8 as many and their
    scale.

    On a CPU, what is allocated is address space. It becomes memory as blocks are written, a page of
    each plane (K or V of a layer) at a time; a large page holds some hundred blocks of a small
    model. The block pool keeps the pages few: it hands out untouched blocks in ascending order, and
    blocks whose content is of no more use before them.
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
        if device.type == "cpu":
            self.tensor = zeros_in_large_pages(shape, dtype)
        else:
            self.tensor = torch.zeros(shape, dtype=dtype, device=device)
        self.layers = [(layer[0], layer[1]) for layer in self.tensor]

    @property
    def resident_bytes(self) -> int:
        """Of ``tensor.nbytes``, those that are in memory."""
        return resident_bytes(self.tensor) if self.tensor.is_cpu else self.tensor.nbytes

    def host_tokens(self, count: int) -> KVTokens:
        """Memory for ``count`` tokens on the host, pinned if the cache is elsewhere."""
        num_layers, _, _, num_kv_heads, _, size = self.tensor.shape
        # One allocation per sequence: thousands are kept, and many small ones would leave holes.
        return KVTokens(
            *torch.empty(
                (2, num_layers, count, num_kv_heads, size),
                dtype=self.tensor.dtype,
                pin_memory=self.tensor.is_cuda,
            )
        )

    def read(self, slots: torch.Tensor) -> KVTokens:
        """Copy the tokens at ``slots`` (int64 [N]) to the host."""
        tokens = self.host_tokens(len(slots))
        for (k_cache, v_cache), key, value in zip(self.layers, *tokens, strict=True):
            for target, source in zip(
                (key, value), ops.gather_blocks(k_cache, v_cache, slots), strict=True
            ):
                target.copy_(source)
        return tokens

    def write_layer(self, layer: int, slots: torch.Tensor, tokens: KVTokens) -> None:
        """Copy one layer of N tokens to ``slots`` (int64 [N]); one whose slot is -1 is left out."""
        rows = (part[layer] for part in tokens)
        key, value = (part.to(self.tensor.device, non_blocking=True) for part in rows)
        ops.scatter_blocks(key, value, *self.layers[layer], slots)

    def copy_block(self, source: int, destination: int) -> None:
        (mapping,) = to_device([torch.tensor([[source, destination]])], self.tensor.device)
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
