"""Normalisation over the last dimension."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from paged_stream.layers.linear import empty_parameter


class RMSNorm(torch.nn.Module):
    def __init__(self, size: int, *, eps: float, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.eps = eps
        self.weight = empty_parameter(size, dtype=dtype, device=device)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(hidden, self.weight.shape, self.weight, self.eps)
