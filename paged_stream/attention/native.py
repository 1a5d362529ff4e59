"""The project's own kernels, on whichever device the tensors are."""

from __future__ import annotations

import torch

from paged_stream import ops
from paged_stream.attention.backend import AttentionBackend
from paged_stream.attention.metadata import AttentionMetadata


class NativeBackend(AttentionBackend):
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
        return ops.paged_attention(
            query,
            sink_query,
            k_cache,
            v_cache,
            metadata.block_table,
            metadata.query_start_loc,
            metadata.seq_lens,
            metadata.num_sink_tokens,
            metadata.window_size,
            metadata.window_floor,
            metadata.ring_blocks,
            scale,
            alibi_slopes,
            softcap,
            local_window,
        )
