"""The contract of an attention backend: from rotated queries and a paged cache to outputs."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch

from paged_stream.attention.forward_batch import ForwardBatch
from paged_stream.ops import Scoring


class AttentionBackend(ABC):
    """Computes attention of a step's queries over the blocks of its sequences.

    ``needs_host_batch``: `ForwardBatch.host` is read, so the host has to know every step's batch.
    """

    needs_host_batch = False

    @abstractmethod
    def forward(
        self,
        query: torch.Tensor,
        sink_query: torch.Tensor | None,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        batch: ForwardBatch,
        scoring: Scoring,
    ) -> torch.Tensor:
        """Attend to sinks and window; the step's own K and V are in the cache already.

        Args:
            query: [T, num_heads, head_dim], rotated at each token's position.
            sink_query: the same rotated for the sink keys, or ``None`` when both agree.
            k_cache: [num_blocks, num_kv_heads, block_size, row_size], see `ops`.
            v_cache: of the same shape.
            batch: the step's batch.
            scoring: the layer's.

        Returns:
            [T, num_heads, head_dim] in the dtype of ``query``.
        """
