"""The project's own kernels, on whichever device the tensors are."""

from __future__ import annotations

import torch

from paged_stream import ops
from paged_stream.attention.backend import AttentionBackend
from paged_stream.attention.forward_batch import ForwardBatch


class NativeBackend(AttentionBackend):
    def forward(
        self,
        query: torch.Tensor,
        sink_query: torch.Tensor | None,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        batch: ForwardBatch,
        scoring: ops.Scoring,
    ) -> torch.Tensor:
        return ops.paged_attention(query, sink_query, k_cache, v_cache, batch.tensors, scoring)
