"""Attention over the sinks and the window of each sequence."""

from __future__ import annotations

from torch import Tensor

from paged_stream.ops.batch import BatchTensors
from paged_stream.ops.library import ops
from paged_stream.ops.scoring import Scoring


def paged_attention(
    query: Tensor,
    sink_query: Tensor | None,
    k_cache: Tensor,
    v_cache: Tensor,
    batch: BatchTensors,
    scoring: Scoring,
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
        k_cache: the keys, this step's included.
        v_cache: the values, this step's included.
        batch: the step's batch.
        scoring: the layer's.

    Returns:
        [T, num_heads, head_dim], contiguous, in the dtype of ``query``.
    """
    return ops.paged_attention.default(
        query,
        sink_query,
        k_cache,
        v_cache,
        batch,
        scoring.scale,
        scoring.alibi_slopes,
        scoring.softcap or 0.0,
        scoring.local_window or 0,
    )
