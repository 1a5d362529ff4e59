"""LoRA adapters beside the projections of a decoder: several in a batch, one or none per row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch

from paged_stream import ops


class LoadedAdapter:
    """An adapter on the model's device.

    Args:
        parts: see `ops.LowRank`.
        num_layers: of the decoder.
        dtype: of all weights.
    """

    def __init__(self, parts: Sequence[ops.LowRank], num_layers: int, dtype: torch.dtype) -> None:
        self.laid_out: ops.Adapter | None = None
        if parts[0].down.device.type == "cpu":
            self.laid_out = ops.Adapter(parts, num_layers, dtype)
        self.parts: dict[tuple[int, ops.Projection], list[ops.LowRank]] = {}
        for part in parts:
            self.parts.setdefault((part.layer, part.projection), []).append(part)


class StepAdapters(NamedTuple):
    """The adapters of a step's rows.

    Args:
        adapters: those of the step.
        row_adapters: int32 [T], which of them each row has; -1 for none.
        rows: int64, the rows of each adapter; where no op does it.
    """

    adapters: Sequence[LoadedAdapter]
    row_adapters: torch.Tensor
    rows: Sequence[torch.Tensor]

    @property
    def laid_out(self) -> list[ops.Adapter]:
        """As ops take them on the CPU."""
        laid_out = [adapter.laid_out for adapter in self.adapters]
        return [each for each in laid_out if each is not None]

    def add(
        self, product: torch.Tensor, hidden: torch.Tensor, layer: int, projection: ops.Projection
    ) -> None:
        """Add to a product [T, out_features] of a layer what the adapters give for ``hidden``
        [T, in_features]."""
        if not self.rows:
            ops.add_adapters(product, hidden, self.laid_out, self.row_adapters, layer, projection)
            return
        for adapter, rows in zip(self.adapters, self.rows, strict=True):
            for part in adapter.parts.get((layer, projection), ()):
                columns = slice(part.first_column, part.first_column + part.up.shape[1])
                inner = hidden[rows].mm(part.down.t()).mul_(part.scaling)
                product[:, columns].index_add_(0, rows, inner.mm(part.up))


def step_adapters(
    keys: Sequence[str],
    lengths: Sequence[int],
    loaded: Mapping[str, LoadedAdapter],
    device: torch.device,
) -> StepAdapters:
    """The adapters of a step.

    Args:
        keys: of each sequence's adapter in ``loaded``; empty for none. One at least has one.
        lengths: rows of each sequence, which follow each other.
    """
    names = [key for key in dict.fromkeys(keys) if key]
    indices = torch.tensor([names.index(key) if key else -1 for key in keys], dtype=torch.int32)
    of_rows = indices.repeat_interleave(torch.tensor(lengths))
    rows: list[torch.Tensor] = []
    if device.type != "cpu":
        rows = [(of_rows == index).nonzero()[:, 0].to(device) for index in range(len(names))]
    return StepAdapters([loaded[name] for name in names], of_rows, rows)
