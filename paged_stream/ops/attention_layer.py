"""The attention half of a layer in one op."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from paged_stream.ops.batch import BatchTensors
from paged_stream.ops.laid_out import LaidOut
from paged_stream.ops.library import ops
from paged_stream.ops.scoring import Scoring


class AttentionWeights(NamedTuple):
    """Weights of the attention half of a layer.

    Args:
        norm: float32 [dim].
        qkv: packed, of (num_heads + 2 * num_kv_heads) * head_dim outputs: [Q, K, V].
        qkv_bias: of as many numbers, or ``None``.
        output: packed, of dim outputs.
        output_bias: [dim], or ``None``.
    """

    norm: Tensor
    qkv: Tensor
    qkv_bias: Tensor | None
    output: Tensor
    output_bias: Tensor | None


class HeadShape(NamedTuple):
    """How many heads a layer has, and how many elements each."""

    num_heads: int
    num_kv_heads: int
    head_dim: int


class AttentionLayer(LaidOut):
    """The attention half of a layer, checked and laid out for `attention_layer`.

    Args:
        weights: kept alive.
        heads: of the layer and its cache.
        scoring: see `paged_attention`.
        eps: of the norm.
        interleaved: see `rotary_and_cache`.
        dtype: of the residual stream, float32 or bfloat16.
    """

    def __init__(
        self,
        weights: AttentionWeights,
        heads: HeadShape,
        scoring: Scoring,
        *,
        eps: float,
        interleaved: bool,
        dtype: torch.dtype,
    ) -> None:
        handle = ops.lay_out_attention_layer.default(
            [*weights, scoring.alibi_slopes],
            heads,
            eps,
            interleaved,
            scoring.scale,
            scoring.softcap or 0.0,
            scoring.local_window or 0,
            dtype == torch.bfloat16,
        )
        super().__init__(handle, ops.free_attention_layer.default)


def attention_layer(
    residual: Tensor,
    delta: Tensor | None,
    layer: AttentionLayer,
    rotary: Tensor,
    sink_rotary: Tensor | None,
    k_cache: Tensor,
    v_cache: Tensor,
    batch: BatchTensors,
) -> Tensor:
    """Compute ``output(attention(qkv(x)))`` of ``x = add_rms_norm(residual, delta)``: the same bits
    as op by op.

    Args:
        residual: [T, dim], contiguous; changed when there is a delta.
        delta: [T, dim], contiguous, or ``None``.
        layer: weights and sizes.
        rotary: float32 [T, rotary_dim], see `rotary_and_cache`.
        sink_rotary: the same towards the sinks, or ``None`` when both rotations agree.
        k_cache: the keys; the step's are written, then read.
        v_cache: the values; the step's are written, then read.
        batch: the step's batch.

    Returns:
        [T, dim] in the dtype of ``residual``.
    """
    return ops.attention_layer.default(
        residual, delta, layer.handle, rotary, sink_rotary, k_cache, v_cache, batch
    )
