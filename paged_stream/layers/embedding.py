"""Tables of vectors, for tokens and for learned positions. A table in quantised blocks stays so;
rows are then computed when they are asked for."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from paged_stream import ops
from paged_stream.layers.blocks import Blocks, pack_blocks, packed_bytes
from paged_stream.layers.large_pages import Arena
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
        self.size, self.dtype, self.device = size, dtype, device
        self.weight: torch.nn.Parameter | None = empty_parameter(
            num_rows, size, dtype=dtype, device=device
        )
        self.scale = torch.tensor(scale, dtype=dtype).item()
        self.block_format: str | None = None
        self.register_buffer("blocks", None)
        self.register_buffer("packed_weight", None)

    def set_blocks(self, blocks: Blocks) -> None:
        """Take the table as quantised blocks and let go of the plain one."""
        self.weight, self.block_format, self.blocks = None, blocks.format, blocks.data

    def pack(self, arena: Arena, shared: torch.Tensor | None) -> None:
        """Lay quantised blocks out as `Linear.pack` does; a plain table stays as it is.

        Args:
            shared: the same weight, packed already.
        """
        if self.block_format is None:
            return
        if shared is None:
            part = Blocks(self.block_format, self.blocks)
            out = arena.empty(packed_bytes([(part.format, len(part.data))], part.in_features))
            shared = pack_blocks([part], out, consume=True)
        self.packed_weight = shared
        self.register_buffer("blocks", None)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Map int64 [T] to [T, size]."""
        if self.weight is not None:
            rows = F.embedding(ids, self.weight)
        else:
            rows = ops.embedding_rows(ids, self.packed_weight, self.size, self.dtype)
        return rows if self.scale == 1.0 else rows.mul_(self.scale)
