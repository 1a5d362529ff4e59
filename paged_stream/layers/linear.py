"""Projection. Its weight is allocated and filled by loading, or comes in quantised blocks, and is
packed once for the CPU; on CUDA it stays as it is, for cuBLAS."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from paged_stream import ops
from paged_stream.layers.blocks import Blocks, pack_blocks, packed_bytes
from paged_stream.layers.large_pages import Arena
from paged_stream.layers.low_rank import StepAdapters


def empty_parameter(*shape: int, dtype: torch.dtype, device: torch.device) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.empty(shape, dtype=dtype, device=device), requires_grad=False)


class Linear(torch.nn.Module):
    """``x W^T + b``; a row's result does not depend on the rows beside it once packed.

    Args:
        weight: share this one instead of allocating.

    Attributes:
        place: the layer and which of its products this is, if adapters may add to it.
        row_factors: float32 [out_features], what the weight's rows were multiplied by since it was
            loaded; ``None`` if they were not.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias: bool,
        dtype: torch.dtype,
        device: torch.device,
        weight: torch.nn.Parameter | None = None,
    ) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        if weight is None:
            weight = empty_parameter(out_features, in_features, dtype=dtype, device=device)
        self.weight: torch.nn.Parameter | None = weight
        self.bias = empty_parameter(out_features, dtype=dtype, device=device) if bias else None
        self.block_formats: list[str] = []
        self.row_factors: torch.Tensor | None = None
        self.place: tuple[int, ops.Projection] | None = None
        self.register_buffer("packed_weight", None)

    def set_blocks(self, parts: list[Blocks]) -> None:
        """Take the weight as quantised blocks and let go of the plain one.

        Args:
            parts: its rows, in order; several if their formats differ.
        """
        self.weight = None
        self.block_formats = [part.format for part in parts]
        for name, part in zip(self._block_names(), parts, strict=True):
            self.register_buffer(name, part.data)

    def parts(self) -> list[Blocks]:
        """What `set_blocks` was given, until it is packed."""
        names = zip(self.block_formats, self._block_names(), strict=True)
        return [Blocks(block_format, self.get_buffer(name)) for block_format, name in names]

    def _block_names(self) -> list[str]:
        return ["blocks", *(f"blocks{i}" for i in range(1, len(self.block_formats)))]

    def rows(self, rows: slice) -> torch.Tensor | Blocks:
        """A view of rows of the weight before it is packed, which one part of it must have all."""
        if not self.block_formats:
            assert self.weight is not None, "packed already"
            return self.weight[rows]
        first = 0
        for part in self.parts():
            if rows.stop <= first + len(part.data):
                return part._replace(data=part.data[rows.start - first : rows.stop - first])
            first += len(part.data)
        raise AssertionError(f"no part has {rows}")

    def pack(self, arena: Arena) -> None:
        """Lay the weight out for the CPU kernels, in the arena, and let go of it as it came."""
        if self.block_formats:
            parts = self.parts()
            sizes = [(part.format, len(part.data)) for part in parts]
            out = arena.empty(packed_bytes(sizes, parts[0].in_features))
            self.packed_weight = pack_blocks(parts, out, consume=True)
            for name in self._block_names():
                delattr(self, name)
        else:
            assert self.weight is not None, "packed already"
            self.packed_weight = arena.keep(ops.pack_linear_weight(self.weight))
        self.weight = None

    def adapted(self, hidden: torch.Tensor, adapters: StepAdapters | None) -> torch.Tensor:
        """As `forward`, with what a step's adapters add."""
        product = self.forward(hidden)
        if adapters is not None and self.place is not None:
            adapters.add(product, hidden, *self.place)
        return product

    def forward(self, hidden: torch.Tensor, *, float_output: bool = False) -> torch.Tensor:
        """Map [T, in_features] to [T, out_features], in float32 if ``float_output``."""
        if self.weight is None:
            return ops.linear(
                hidden, self.packed_weight, self.bias, self.out_features, float_output
            )
        if float_output and hidden.is_cuda and hidden.dtype != torch.float32:
            result = torch.mm(hidden, self.weight.t(), out_dtype=torch.float32)  # not rounded
            return result if self.bias is None else result.add_(self.bias)
        result = F.linear(hidden, self.weight, self.bias)
        return result.float() if float_output else result
