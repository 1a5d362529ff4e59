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
    """Read the slots ``slot_mapping`` (int64 [N]) into contiguous keys and values.

    Args:
        rotary: float32 [N, rotary_dim], cosines then sines by which each key is turned on the way.

    Returns:
        key and value, both rows of the cache, [N, num_kv_heads, row_size]; zeros for slot -1.
    """
    return ops.gather_blocks.default(k_cache, v_cache, slot_mapping, rotary, interleaved)
