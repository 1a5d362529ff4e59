"""Normalisation over the last dimension, together with the addition that comes before it."""

from __future__ import annotations

import torch

from paged_stream import ops
from paged_stream.layers.linear import empty_parameter


class RMSNorm(torch.nn.Module):
    def __init__(self, size: int, *, eps: float, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.eps = eps
        self.weight = empty_parameter(size, dtype=dtype, device=device)

    def forward(self, residual: torch.Tensor, delta: torch.Tensor | None) -> torch.Tensor:
        """Add ``delta`` to ``residual`` in place, if there is one, and return the norm of it."""
        return ops.add_rms_norm(residual, delta, self.weight, self.eps)
