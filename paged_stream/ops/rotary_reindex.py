"""Turning cached keys."""

from __future__ import annotations

from torch import Tensor

from paged_stream.ops.library import ops


def rotary_reindex(
    k_cache: Tensor, slot_mapping: Tensor, rotary: Tensor, interleaved: bool = False
) -> None:
    """Turn the cached keys at ``slot_mapping`` (int64 [N]) in place; -1 is skipped.

    Keys in int8 are quantised again: each turn rounds once more, by at most half a scale.

    Args:
        slot_mapping: int64 [N]; no slot may be named twice.
        rotary: float32 [N, rotary_dim], cosines then sines of the angle to turn each key by.
    """
    ops.rotary_reindex.default(k_cache, slot_mapping, rotary, interleaved)
