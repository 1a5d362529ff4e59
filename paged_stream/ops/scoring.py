"""How attention makes scores of queries and keys."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Scoring(NamedTuple):
    """One layer's way from queries and keys to scores.

    Args:
        scale: factor on the scores.
        alibi_slopes: float32 [num_heads]; a score loses slope times the distance to its key, for
            sink keys measured from num_sink_tokens + p - max(num_sink_tokens, p - window_size + 1,
            window_floor), its place in a cache of what it sees.
        softcap: scaled scores s become softcap * tanh(s / softcap); not with ``alibi_slopes``.
        local_window: the layer's own sliding window L, in tokens: of the sink keys only those at a
            distance below L are seen, measured in the same way, and of the others those with
            p - L < j.
    """

    scale: float
    alibi_slopes: Tensor | None = None
    softcap: float | None = None
    local_window: int | None = None
