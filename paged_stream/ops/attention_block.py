"""A layer's attention block in one op."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from paged_stream.ops.library import ops


class AttentionBlock(NamedTuple):
    """What a layer's attention block is made of; weights are packed, of [Q, K, V] rows and of dim
    rows. The rest is as in `rotary_and_cache` and `paged_attention`."""

    norm_weight: Tensor
    eps: float
    qkv_weight: Tensor
    qkv_bias: Tensor | None
    output_weight: Tensor
    output_bias: Tensor | None
    num_heads: int
    interleaved: bool
    scale: float
    alibi_slopes: Tensor | None
    softcap: float | None
    local_window: int | None


def attention_block(
    residual: Tensor,
    delta: Tensor | None,
    block: AttentionBlock,
    rotary: Tensor,
    sink_rotary: Tensor | None,
    k_cache: Tensor,
    v_cache: Tensor,
    slot_mapping: Tensor,
    block_table: Tensor,
    query_start_loc: Tensor,
    seq_lens: Tensor,
    num_sink_tokens: Tensor,
    window_size: Tensor,
    window_floor: Tensor,
    ring_blocks: Tensor,
) -> Tensor:
    """Compute ``output(attention(qkv(x)))`` of ``x = add_rms_norm(residual, delta)``: the same bits
    as op by op.

    Args:
        residual: [T, dim], contiguous; changed when there is a delta, of the same shape.
        rotary: as in `rotary_and_cache`, and so are ``sink_rotary`` and ``slot_mapping``.
        k_cache: a cache, in which the step's keys are written and then read; so is ``v_cache``.
        block_table: as in `paged_attention`, and so is what follows.

    Returns:
        [T, dim] in the dtype of ``residual``.
    """
    return ops.attention_block.default(
        residual,
        delta,
        block.norm_weight,
        block.eps,
        block.qkv_weight,
        block.qkv_bias,
        block.output_weight,
        block.output_bias,
        block.num_heads,
        rotary,
        sink_rotary,
        block.interleaved,
        k_cache,
        v_cache,
        slot_mapping,
        block_table,
        query_start_loc,
        seq_lens,
        num_sink_tokens,
        window_size,
        window_floor,
        ring_blocks,
        block.scale,
        block.alibi_slopes,
        block.softcap or 0.0,
        block.local_window or 0,
    )
