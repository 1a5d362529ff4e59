"""Copying blocks of the cache."""

from __future__ import annotations

from torch import Tensor

from paged_stream.ops.library import ops


def copy_blocks(kv_cache: Tensor, block_mapping: Tensor) -> None:
    """Copy whole blocks, keys and values of every layer.

    Args:
        kv_cache: [num_layers, 2, num_blocks, num_kv_heads, block_size, row_size], contiguous.
        block_mapping: int64 [n, 2], pairs (source, destination). A block may be the source of
            several pairs, but the destination of one at most, and never both.
    """
    ops.copy_blocks.default(kv_cache, block_mapping)
