"""Rotating queries and keys, and writing keys and values to the cache."""

from __future__ import annotations

from torch import Tensor

from paged_stream.ops.library import ops


def rotary_and_cache(
    query: Tensor,
    sink_query: Tensor | None,
    key: Tensor,
    value: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    rotary: Tensor,
    sink_rotary: Tensor | None,
    slot_mapping: Tensor,
    interleaved: bool = False,
) -> None:
    """Rotate queries and keys, and write keys and values to their slots, in one pass.

    For an int8 cache each head of a token is quantised by itself: scale = max |x| / 127, elements
    x / scale rounded to the nearest integer. Keys are quantised from their float32 rotations.

    Args:
        query: [T, num_heads, head_dim], rows strided; rotated in place by ``rotary``.
        sink_query: [T, num_heads, head_dim], written: the unrotated query turned by
            ``sink_rotary``. ``None`` when both rotations agree.
        key: [T, num_kv_heads, head_dim], rows strided, not modified.
        value: [T, num_kv_heads, head_dim], rows strided, not modified.
        k_cache: the keys, written.
        v_cache: the values, written.
        rotary: float32 [T, rotary_dim], cosines then sines at each token's position; rotary_dim
            is even, and 0 for models without rotary embedding.
        sink_rotary: the same at each token's position towards the sinks.
        slot_mapping: int64 [T]; -1 writes nothing.
        interleaved: rotate pairs (2i, 2i + 1), not (i, i + rotary_dim / 2).
    """
    ops.rotary_and_cache.default(
        query,
        sink_query,
        key,
        value,
        k_cache,
        v_cache,
        rotary,
        sink_rotary,
        slot_mapping,
        interleaved,
    )
