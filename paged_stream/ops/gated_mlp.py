"""The gated feed-forward half of a layer in one op."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from paged_stream.ops.laid_out import LaidOut
from paged_stream.ops.library import ops


class MLPWeights(NamedTuple):
    """Weights of the gated feed-forward half of a layer.

    Args:
        norm: float32 [dim].
        up: packed, of 2 * intermediate_size outputs: the gate's, then those of up.
        up_bias: of as many numbers, or ``None``.
        down: packed, of dim outputs.
        down_bias: [dim], or ``None``.
    """

    norm: Tensor
    up: Tensor
    up_bias: Tensor | None
    down: Tensor
    down_bias: Tensor | None


class GatedMLP(LaidOut):
    """The gated feed-forward half of a layer, checked and laid out for `gated_mlp`.

    Args:
        weights: kept alive.
        eps: of the norm.
        dtype: of the residual stream, float32 or bfloat16.
    """

    def __init__(self, weights: MLPWeights, *, eps: float, dtype: torch.dtype) -> None:
        handle = ops.lay_out_gated_mlp.default([*weights], eps, dtype == torch.bfloat16)
        super().__init__(handle, ops.free_gated_mlp.default)


def gated_mlp(residual: Tensor, delta: Tensor | None, mlp: GatedMLP) -> Tensor:
    """Compute ``down(silu(gate(x)) * up(x))`` of ``x = add_rms_norm(residual, delta)``: the same
    bits as op by op.

    Args:
        residual: [T, dim], contiguous; changed when there is a delta.
        delta: [T, dim], contiguous, or ``None``.
        mlp: weights and sizes.

    Returns:
        [T, dim] in the dtype of ``residual``.
    """
    return ops.gated_mlp.default(residual, delta, mlp.handle)
