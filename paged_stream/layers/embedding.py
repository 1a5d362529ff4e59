"""Tables of vectors, for tokens and for learned positions."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from paged_stream.layers.linear import empty_parameter


class Embedding(torch.nn.Module):
    """Rows of a table, times ``scale`` rounded to their dtype."""

    def __init__(
        self,
        num_rows: int,
        size: int,
        *,
        scale: float = 1.0,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        super().__init__()
        self.weight = empty_parameter(num_rows, size, dtype=dtype, device=device)
        self.scale = torch.tensor(scale, dtype=dtype).item()

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Map int64 [T] to [T, size]."""
        rows = F.embedding(ids, self.weight)
        return rows if self.scale == 1.0 else rows.mul_(self.scale)
