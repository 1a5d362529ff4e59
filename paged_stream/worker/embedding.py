"""Embeddings: the hidden states that stand for whole texts, those of their last tokens."""

from __future__ import annotations

from array import array

import torch


def unit_vectors(hidden: torch.Tensor) -> list[array[float] | None]:
    """Hidden states, each divided by its length, as float32; ``None`` for one that has no
    direction, because a number in it is not finite or all are 0.

    A row depends on nothing but itself: float64 makes the order of the sum irrelevant.

    Args:
        hidden: [N, hidden_size], after the final norm.
    """
    rows = hidden.double()
    units = (rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True)).float()
    is_finite = torch.isfinite(units).all(dim=1).tolist()
    return [
        array("f", row) if is_well else None
        for row, is_well in zip(units.tolist(), is_finite, strict=True)
    ]
