"""A layer's gated feed-forward block in one op."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from paged_stream.ops.library import ops


class GatedMLP(NamedTuple):
    """What a layer's gated feed-forward block is made of.

    Args:
        norm_weight: float32 [dim].
        up_weight: packed, of 2 * intermediate_size outputs: the gate's, then those of up.
        down_weight: packed, of dim outputs.
    """

    norm_weight: Tensor
    eps: float
    up_weight: Tensor
    up_bias: Tensor | None
    down_weight: Tensor
    down_bias: Tensor | None
    intermediate_size: int


def gated_mlp(residual: Tensor, delta: Tensor | None, block: GatedMLP) -> Tensor:
    """Compute ``down(silu(gate(x)) * up(x))`` of ``x = add_rms_norm(residual, delta)``: the same
    bits as op by op.

    Args:
        residual: [T, dim], contiguous; changed when there is a delta, of the same shape.

    Returns:
        [T, dim] in the dtype of ``residual``.
    """
    return ops.gated_mlp.default(residual, delta, *block)
