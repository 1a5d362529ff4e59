"""Ops that write, read, turn and copy rows of the KV cache."""

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
        key: [T, num_kv_heads, head_dim], rows strided, not modified; so is ``value``.
        k_cache: a cache, written; so is ``v_cache``.
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


def scatter_blocks(
    key: Tensor,
    value: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slot_mapping: Tensor,
    rotary: Tensor | None = None,
    interleaved: bool = False,
) -> None:
    """Write keys and values, rows of the cache, [N, num_kv_heads, row_size], to their slots; -1
    writes nothing.

    Args:
        slot_mapping: int64 [N]; no slot may be named twice.
        rotary: float32 [N, rotary_dim], cosines then sines by which each key is turned on the way.
    """
    ops.scatter_blocks.default(key, value, k_cache, v_cache, slot_mapping, rotary, interleaved)


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


def copy_blocks(kv_cache: Tensor, block_mapping: Tensor) -> None:
    """Copy whole blocks, keys and values of every layer.

    Args:
        kv_cache: [num_layers, 2, num_blocks, num_kv_heads, block_size, row_size], contiguous.
        block_mapping: int64 [n, 2], pairs (source, destination). A block may be the source of
            several pairs, but the destination of one at most, and never both.
    """
    ops.copy_blocks.default(kv_cache, block_mapping)
