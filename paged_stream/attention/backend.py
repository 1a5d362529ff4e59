"""The contract of an attention backend: from rotated queries and a paged cache to outputs."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch

from paged_stream.attention.metadata import AttentionMetadata


class AttentionBackend(ABC):
    """Computes attention of a step's queries over the blocks of its sequences.

    ``needs_host_metadata``: `AttentionMetadata.host` is read, so the host has to be there.
    """

    needs_host_metadata = False

    @abstractmethod
    def forward(
        self,
        query: torch.Tensor,
        sink_query: torch.Tensor | None,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        metadata: AttentionMetadata,
        *,
        scale: float,
        alibi_slopes: torch.Tensor | None = None,
        softcap: float | None = None,
        local_window: int | None = None,
    ) -> torch.Tensor:
        """Attend to sinks and window; the step's own K and V are in the cache already.

        Args:
            query: [T, num_heads, head_dim], rotated at each token's position.
            sink_query: the same rotated for the sink keys, or ``None`` when both agree.
            k_cache: [num_blocks, num_kv_heads, block_size, row_size], see `ops`; so is ``v_cache``.
            scale: factor on the scores.
            alibi_slopes: float32 [num_heads], or ``None``.
            softcap: bend scores to stay below this.
            local_window: the layer's own window, on top of the sequences' sinks and windows.

        Returns:
            [T, num_heads, head_dim] in the dtype of ``query``.
        """
