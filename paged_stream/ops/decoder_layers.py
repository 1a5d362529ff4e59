"""All layers of a decoder in one op."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from paged_stream.ops.adapter import Adapter
from paged_stream.ops.attention_layer import AttentionLayer
from paged_stream.ops.batch import BatchTensors
from paged_stream.ops.gated_mlp import GatedMLP
from paged_stream.ops.laid_out import LaidOut
from paged_stream.ops.library import ops


class DecoderLayers(LaidOut):
    """Both halves of all layers, laid out for `decoder_layers`.

    Args:
        attention: one per layer, of the same sizes.
        mlp: one per layer, of the same sizes.
        layer_rotary: which of a step's rotary tables each layer takes.
    """

    def __init__(
        self,
        attention: Sequence[AttentionLayer],
        mlp: Sequence[GatedMLP],
        layer_rotary: Sequence[int],
    ) -> None:
        handle = ops.lay_out_decoder_layers.default(
            [layer.handle for layer in attention], [layer.handle for layer in mlp], layer_rotary
        )
        super().__init__(handle, ops.free_decoder_layers.default)


def decoder_layers(
    residual: Tensor,
    layers: DecoderLayers,
    rotary: Sequence[Tensor],
    sink_rotary: Sequence[Tensor],
    k_caches: Sequence[Tensor],
    v_caches: Sequence[Tensor],
    batch: BatchTensors,
    adapters: Sequence[Adapter] = (),
    row_adapters: Tensor | None = None,
) -> Tensor:
    """Run `attention_layer` and `gated_mlp` of one layer after the other, and `add_adapters` behind
    every product: the same bits.

    Args:
        residual: [T, dim], contiguous; changed.
        layers: weights and sizes of all layers.
        rotary: the tables that ``layers`` names, see `rotary_and_cache`.
        sink_rotary: as many towards the sinks, or none when both rotations agree.
        k_caches: one per layer, of the same shape; the step's keys are written, then read.
        v_caches: one per layer, of the same shape; the step's values are written, then read.
        batch: the step's batch.
        adapters: as in `add_adapters`.
        row_adapters: as there; may be left out where there are no adapters.

    Returns:
        [T, dim] in the dtype of ``residual``: what the last layer adds to it.
    """
    handles = [adapter.handle for adapter in adapters]
    return ops.decoder_layers.default(
        residual,
        layers.handle,
        rotary,
        sink_rotary,
        k_caches,
        v_caches,
        batch,
        handles,
        row_adapters,
    )
