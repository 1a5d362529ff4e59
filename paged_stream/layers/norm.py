"""Normalisation over the last dimension, together with the addition that comes before it.

Every norm adds ``delta`` to ``residual`` in place, if there is one, and returns the norm of the
sum, [T, size].
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F

from paged_stream import ops
from paged_stream.layers.linear import empty_parameter


class RMSNorm(torch.nn.Module):
    """``x / rms(x) * weight``; the weight is float32, because Gemma's 1 + weight must not round."""

    def __init__(self, size: int, *, eps: float, device: torch.device) -> None:
        super().__init__()
        self.eps = eps
        self.weight = empty_parameter(size, dtype=torch.float32, device=device)

    def forward(self, residual: torch.Tensor, delta: torch.Tensor | None) -> torch.Tensor:
        return ops.add_rms_norm(residual, delta, self.weight, self.eps)


class LayerNorm(torch.nn.Module):
    """``(x - mean(x)) / std(x) * weight``, plus a bias in most models."""

    def __init__(
        self, size: int, *, eps: float, bias: bool, dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__()
        self.eps = eps
        self.weight = empty_parameter(size, dtype=dtype, device=device)
        self.bias = empty_parameter(size, dtype=dtype, device=device) if bias else None

    def forward(self, residual: torch.Tensor, delta: torch.Tensor | None) -> torch.Tensor:
        if delta is not None:
            residual.add_(delta)
        return F.layer_norm(residual, self.weight.shape, self.weight, self.bias, self.eps)


class NoNorm(torch.nn.Module):
    """Only the addition. What it returns is ``residual`` itself, to be read, not changed."""

    def forward(self, residual: torch.Tensor, delta: torch.Tensor | None) -> torch.Tensor:
        return residual if delta is None else residual.add_(delta)


class HeadNorm(torch.nn.Module):
    """Normalises Q or K: [T, heads, head_dim], rows strided, to the same shape, contiguous.

    Args:
        scope: ``"head"``: RMSNorm of each head, one weight for all; ``"full"``: RMSNorm of all
            heads together; ``"per_head"``: LayerNorm of each head with its own weight.
    """

    def __init__(
        self,
        scope: Literal["head", "per_head", "full"],
        num_heads: int,
        head_dim: int,
        *,
        eps: float,
        device: torch.device,
    ) -> None:
        super().__init__()
        self.scope = scope
        self.eps = eps
        size = head_dim if scope == "head" else num_heads * head_dim
        self.weight = empty_parameter(size, dtype=torch.float32, device=device)

    def forward(self, heads: torch.Tensor) -> torch.Tensor:
        if self.scope == "per_head":
            normed = F.layer_norm(heads.float(), heads.shape[-1:], eps=self.eps)
            return (normed * self.weight.view(heads.shape[1:])).to(heads.dtype)
        rows = heads.reshape(-1, self.weight.shape[0]).contiguous()
        return ops.add_rms_norm(rows, None, self.weight, self.eps).view(heads.shape)
