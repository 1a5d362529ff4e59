"""Turning cached keys."""

from __future__ import annotations

from torch import Tensor

from paged_stream.ops.library import ops


def rotary_reindex(
    k_cache: Tensor, slot_mapping: Tensor, rotary: Tensor, interleaved: bool = False
) -> None:
    """Turn cached keys in place.

    Keys in int8 are quantised again: each turn rounds once more, by at most half a scale.

    Args:
        k_cache: the keys, changed.
        slot_mapping: int64 [N]; -1 is skipped, and no slot may be named twice.
        rotary: float32 [N, rotary_dim], cosines then sines of the angle to turn each key by.
        interleaved: see `rotary_and_cache`.
    """
    ops.rotary_reindex.default(k_cache, slot_mapping, rotary, interleaved)
