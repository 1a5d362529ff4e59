"""Reading slots of the cache."""

from __future__ import annotations

from torch import Tensor

from paged_stream.ops.library import ops


def gather_blocks(
    k_cache: Tensor,
    v_cache: Tensor,
    slot_mapping: Tensor,
    rotary: Tensor | None = None,
    interleaved: bool = False,
) -> tuple[Tensor, Tensor]:
    """Read slots into contiguous keys and values.

    Args:
        k_cache: the keys.
        v_cache: the values.
        slot_mapping: int64 [N]; -1 gives zeros.
        rotary: float32 [N, rotary_dim], cosines then sines by which each key is turned on the way;
            ``None`` leaves keys as they are.
        interleaved: see `rotary_and_cache`.

    Returns:
        Key and value, each [N, num_kv_heads, row_size] in the dtype of the cache.
    """
    return ops.gather_blocks.default(k_cache, v_cache, slot_mapping, rotary, interleaved)
