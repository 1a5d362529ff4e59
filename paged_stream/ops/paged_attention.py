"""Attention over the sinks and the window of each sequence."""

from __future__ import annotations

from torch import Tensor

from paged_stream.ops.library import ops


def paged_attention(
    query: Tensor,
    sink_query: Tensor | None,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    query_start_loc: Tensor,
    seq_lens: Tensor,
    num_sink_tokens: Tensor,
    window_size: Tensor,
    window_floor: Tensor,
    ring_blocks: Tensor,
    scale: float,
    alibi_slopes: Tensor | None = None,
    softcap: float | None = None,
    local_window: int | None = None,
) -> Tensor:
    """Attention of each token over the sinks and the window of its sequence.

    The token at position p sees the keys j < num_sink_tokens, through ``sink_query``, and
    p - window_size < j <= p that are not below window_floor, through ``query``. A local window
    narrows both to the last ``local_window`` of the keys that a sequence keeps; the block table
    does not depend on it. Keys and blocks that no token of a chunk sees are not touched, so slots
    and columns may hold anything there.

    Args:
        query: [T, num_heads, head_dim], rows strided; num_heads a multiple of num_kv_heads.
        sink_query: the same for sink keys, or ``None`` to use ``query`` for them too.
        k_cache: a cache that holds this step's keys already; so is ``v_cache``.
        block_table: int32 [B, width], sink columns, then the ring.
        query_start_loc: int32 [B + 1], where each sequence's chunk starts; it may be empty.
        seq_lens: int64 [B], length of each stream with its chunk.
        num_sink_tokens: int32 [B], 0 for full attention.
        window_size: int32 [B], the largest int32 for full attention.
        window_floor: int64 [B], first position behind the sinks whose key there is: from
            num_sink_tokens up to the chunk's first position; 0 for all, and for full attention.
        ring_blocks: int32 [B], columns of the ring.
        scale: factor on the scores.
        alibi_slopes: float32 [num_heads]; a score loses slope times the distance to its key, for
            sink keys measured from num_sink_tokens + p - max(num_sink_tokens, p - window_size + 1,
            window_floor), its place in a cache of what it sees.
        softcap: scaled scores s become softcap * tanh(s / softcap); not with ``alibi_slopes``.
        local_window: the layer's own sliding window L: of the sink keys only those at a distance
            below L are seen, measured in the same way, and of the others those with p - L < j.

    Returns:
        [T, num_heads, head_dim], contiguous, in the dtype of ``query``.
    """
    return ops.paged_attention.default(
        query,
        sink_query,
        k_cache,
        v_cache,
        block_table,
        query_start_loc,
        seq_lens,
        num_sink_tokens,
        window_size,
        window_floor,
        ring_blocks,
        scale,
        alibi_slopes,
        softcap or 0.0,
        local_window or 0,
    )
