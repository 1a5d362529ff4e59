"""The residual stream plus a delta, and its norm."""

from __future__ import annotations

from torch import Tensor

from paged_stream.ops.library import ops


def add_rms_norm(residual: Tensor, delta: Tensor | None, weight: Tensor, eps: float) -> Tensor:
    """Add ``delta`` to the residual stream in place, and normalise: ``x / rms(x) * weight``.

    Args:
        residual: [T, dim], contiguous; changed when there is a delta.
        delta: [T, dim], contiguous, or ``None``.
        weight: float32 [dim], whatever the dtype of ``residual``.
        eps: added to the mean square.

    Returns:
        [T, dim], computed in float32 and rounded once.
    """
    return ops.add_rms_norm.default(residual, delta, weight, eps)
