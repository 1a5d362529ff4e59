"""The angles of a step's tokens."""

from __future__ import annotations

from torch import Tensor

from paged_stream.ops.library import ops


def rotary_table(positions: Tensor, inv_freq: Tensor, scaling: float) -> Tensor:
    """Cosines and sines of ``position * inv_freq``, times ``scaling``, computed in float64.

    Args:
        positions: int64 [T].
        inv_freq: float64 [rotary_dim / 2].

    Returns:
        float32 [T, rotary_dim], cosines then sines.
    """
    return ops.rotary_table.default(positions, inv_freq, scaling)
