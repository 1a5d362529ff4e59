"""Writing slots of the cache."""

from __future__ import annotations

from torch import Tensor

from paged_stream.ops.library import ops


def scatter_blocks(
    key: Tensor,
    value: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slot_mapping: Tensor,
    rotary: Tensor | None = None,
    interleaved: bool = False,
) -> None:
    """Write keys and values to their slots.

    Args:
        key: [N, num_kv_heads, row_size] in the dtype of the cache.
        value: [N, num_kv_heads, row_size] in the dtype of the cache.
        k_cache: the keys, written.
        v_cache: the values, written.
        slot_mapping: int64 [N]; -1 writes nothing, and no slot may be named twice.
        rotary: float32 [N, rotary_dim], cosines then sines by which each key is turned on the way;
            ``None`` leaves keys as they are.
        interleaved: see `rotary_and_cache`.
    """
    ops.scatter_blocks.default(key, value, k_cache, v_cache, slot_mapping, rotary, interleaved)
