"""The ranks that compute one model together, and what they exchange; torch.distributed's default
group does it."""

from __future__ import annotations

import torch
import torch.distributed as dist


class RankGroup:
    """This process's place among the ranks; all of them make the same calls in the same order."""

    def __init__(self) -> None:
        self.rank = dist.get_rank()
        self.size = dist.get_world_size()

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Add up a tensor over all ranks, in place; every rank gets the same bits."""
        dist.all_reduce(tensor)
        return tensor

    def join_columns(self, tensor: torch.Tensor, widths: list[int]) -> torch.Tensor:
        """Put the ranks' columns side by side.

        Args:
            tensor: this rank's, [N, widths[rank]].
            widths: of each rank.

        Returns:
            [N, sum(widths)], on every rank.
        """
        widest = max(widths)
        padded = tensor.new_zeros(tensor.shape[0], widest)
        padded[:, : tensor.shape[1]] = tensor
        parts = [torch.empty_like(padded) for _ in widths]
        dist.all_gather(parts, padded)
        return torch.cat([part[:, :w] for part, w in zip(parts, widths, strict=True)], dim=1)
