"""All layers of a decoder in one op."""

from __future__ import annotations

import weakref
from collections.abc import Sequence

import torch
from torch import Tensor

from paged_stream.ops.attention_block import AttentionBlock
from paged_stream.ops.gated_mlp import GatedMLP
from paged_stream.ops.library import ops


class DecoderLayers:
    """The blocks of all layers, checked and laid out for `decoder_layers`.

    Args:
        attention: one per layer, alike in all but weights and local windows.
        mlp: one per layer, alike in all but weights.
        layer_rotary: which of a step's rotary tables each layer takes.
        num_kv_heads: of the cache, and so is ``head_dim``.
        dtype: of the residual stream, float32 or bfloat16.
    """

    def __init__(
        self,
        attention: list[AttentionBlock],
        mlp: list[GatedMLP],
        layer_rotary: list[int],
        num_kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
    ) -> None:
        first = attention[0]
        self.handle: int = ops.lay_out_layers.default(
            [block.norm_weight for block in attention],
            [block.qkv_weight for block in attention],
            _present([block.qkv_bias for block in attention]),
            [block.output_weight for block in attention],
            _present([block.output_bias for block in attention]),
            [block.norm_weight for block in mlp],
            [block.up_weight for block in mlp],
            _present([block.up_bias for block in mlp]),
            [block.down_weight for block in mlp],
            _present([block.down_bias for block in mlp]),
            first.eps,
            first.num_heads,
            num_kv_heads,
            head_dim,
            mlp[0].intermediate_size,
            first.interleaved,
            first.scale,
            first.alibi_slopes,
            first.softcap or 0.0,
            [block.local_window or 0 for block in attention],
            layer_rotary,
            dtype == torch.bfloat16,
        )
        finalizer = weakref.finalize(self, ops.free_layers.default, self.handle)
        finalizer.atexit = False  # somebody may compute until the very end


def _present(biases: list[Tensor | None]) -> list[Tensor]:
    """All layers' biases, or none."""
    present = [bias for bias in biases if bias is not None]
    assert len(present) in (0, len(biases))
    return present


def decoder_layers(
    residual: Tensor,
    layers: DecoderLayers,
    rotary: list[Tensor],
    sink_rotary: list[Tensor],
    k_caches: Sequence[Tensor],
    v_caches: Sequence[Tensor],
    slot_mapping: Tensor,
    block_table: Tensor,
    query_start_loc: Tensor,
    seq_lens: Tensor,
    num_sink_tokens: Tensor,
    window_size: Tensor,
    window_floor: Tensor,
    ring_blocks: Tensor,
) -> Tensor:
    """Run ``attention_block`` and ``gated_mlp`` of one layer after the other: the same bits.

    Args:
        residual: [T, dim], contiguous; changed.
        rotary: the tables that ``layers`` names, as in `rotary_and_cache`; so are ``sink_rotary``,
            as many or none, and ``slot_mapping``.
        k_caches: one per layer, of the same shape, in which the step's keys are written and then
            read; so are ``v_caches``.
        block_table: as in `paged_attention`, and so is what follows.

    Returns:
        [T, dim] in the dtype of ``residual``: what the last layer adds to it.
    """
    return ops.decoder_layers.default(
        residual,
        layers.handle,
        rotary,
        sink_rotary,
        k_caches,
        v_caches,
        slot_mapping,
        block_table,
        query_start_loc,
        seq_lens,
        num_sink_tokens,
        window_size,
        window_floor,
        ring_blocks,
    )
