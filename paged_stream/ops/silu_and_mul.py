"""The gated activation."""

from __future__ import annotations

from torch import Tensor

from paged_stream.ops.library import ops


def silu_and_mul(gate_up: Tensor) -> Tensor:
    """Compute ``silu(gate) * up`` from [T, 2 * dim], contiguous, gate first.

    Returns:
        [T, dim], computed in float32 and rounded once.
    """
    return ops.silu_and_mul.default(gate_up)
