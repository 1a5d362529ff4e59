"""All layers in one op: the same bits as half by half."""

from __future__ import annotations

import gc
from dataclasses import dataclass, replace

import pytest
import torch

from paged_stream import ops
from tests.ops import test_gated_mlp
from tests.ops.test_attention_layer import DIM, Problem, float_caches, problem, without_tokens

LAYER_ROTARY = [1, 0, 1]


@dataclass
class Layers:
    """Three layers, and a step over five sequences."""

    attention: list[Problem]
    mlp: list[ops.MLPWeights]
    tables: list[tuple[torch.Tensor, torch.Tensor | None]]

    def __post_init__(self) -> None:
        self.residual, self.batch = self.attention[0].residual, self.attention[0].batch

    def caches(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        return [(layer.k_cache, layer.v_cache) for layer in self.attention]

    def lay_out(self) -> ops.DecoderLayers:
        dtype = self.residual.dtype
        return ops.DecoderLayers(
            [layer.layer() for layer in self.attention],
            [test_gated_mlp.lay_out(weights, dtype) for weights in self.mlp],
            LAYER_ROTARY,
        )

    def step(self) -> tuple:
        """What the op is given behind the layers."""
        rotary, sink_rotary = zip(*self.tables, strict=True)
        k_caches, v_caches = zip(*self.caches(), strict=True)
        sinks = [table for table in sink_rotary if table is not None]
        return list(rotary), sinks, list(k_caches), list(v_caches), self.batch

    def run(self, layers: ops.DecoderLayers | None = None) -> torch.Tensor:
        return ops.decoder_layers(self.residual, layers or self.lay_out(), *self.step())

    def half_by_half(self) -> torch.Tensor:
        delta = None
        for attention, weights, table in zip(self.attention, self.mlp, LAYER_ROTARY, strict=True):
            rotary, sink_rotary = self.tables[table]
            attended = replace(
                attention,
                residual=self.residual,
                delta=delta,
                rotary=rotary,
                sink_rotary=sink_rotary,
            ).run()
            mlp = test_gated_mlp.lay_out(weights, self.residual.dtype)
            delta = ops.gated_mlp(self.residual, attended, mlp)
        assert delta is not None
        return delta

    def copy(self) -> Layers:
        """With a residual stream and caches of its own."""
        return Layers([layer.copy() for layer in self.attention], self.mlp, self.tables)


def three_layers(kind="plain", dtype=torch.bfloat16, cache_dtype=None, *, bias=True, **options):
    attention = [
        problem(kind, dtype, cache_dtype, bias=bias, local_window=local_window, **options)
        for local_window in (None, 9, None)
    ]
    mlp = [test_gated_mlp.problem(1, kind, dtype, bias=bias, dim=DIM)[2] for _ in attention]
    rotary, sink_rotary = attention[0].rotary, attention[0].sink_rotary
    assert sink_rotary is not None
    return Layers(attention, mlp, [(rotary, sink_rotary), (rotary.flip(1), sink_rotary.flip(1))])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("cache_dtype", [None, torch.int8])
@pytest.mark.parametrize("kind", ["plain", "Q4_1"])
@pytest.mark.parametrize("options", [{}, {"softcap": 5.0}, {"with_alibi": True}])
@pytest.mark.parametrize("grown", [False, True])
def test_equals_its_halves(dtype, cache_dtype, kind, options, grown):
    mine = three_layers(kind, dtype, cache_dtype, bias=grown, **options)
    if not grown:
        mine.tables = [(rotary, None) for rotary, _ in mine.tables]
    halves = mine.copy()
    expected, result = halves.half_by_half(), mine.run()
    assert result.isfinite().all()
    assert torch.equal(result, expected)
    assert torch.equal(mine.residual, halves.residual)
    for cache, copy in zip(mine.caches(), halves.caches(), strict=True):
        for written, wanted in zip(cache, copy, strict=True):
            assert torch.equal(written.nan_to_num(7), wanted.nan_to_num(7))


def test_no_tokens():
    mine = three_layers()
    mine.residual, mine.batch = mine.residual[:0], without_tokens(mine.batch)
    mine.tables = [(rotary[:0], sinks[:0]) for rotary, sinks in mine.tables]
    assert mine.run().shape == (0, DIM)


def test_weights_live_as_long_as_their_layers():
    mine = three_layers()
    layers, again = mine.lay_out(), mine.copy()
    expected = mine.run(layers)
    empty = ops.AttentionWeights(torch.ones(1), torch.ones(1), None, torch.ones(1), None)
    for part in (*mine.attention, *again.attention):
        part.weights = empty
    mine.mlp.clear()
    gc.collect()
    noise = [torch.full((300, 300), 7.0) for _ in range(50)]  # where freed weights would have been
    assert torch.equal(again.run(layers), expected)
    handle = layers.handle
    del layers, noise
    with pytest.raises(RuntimeError, match="layers must be a handle from lay_out_decoder_layers"):
        decoder_layers = torch.ops.paged_stream.decoder_layers.default
        decoder_layers(mine.residual, handle, *mine.step(), [], None)


def test_what_a_step_brings_is_checked():
    layers = three_layers().lay_out()

    def refuses(message, **changes):
        mine = three_layers()
        for name, value in changes.items():
            setattr(mine, name, value(getattr(mine, name)))
        with pytest.raises(RuntimeError, match="decoder_layers: " + message):
            mine.run(layers)

    refuses("residual must be BFloat16", residual=lambda x: x.float())
    refuses("residual must have shape", residual=lambda x: x[:, :32].contiguous())
    refuses("token_ids must have shape", residual=lambda x: x[:3])
    refuses("rotary must have shape", tables=lambda x: [(a[:3], b[:3]) for a, b in x])
    refuses("k_caches and v_caches must have 3 tensors each, got 2", attention=lambda x: x[:2])
    refuses("a layer uses rotary table 1, but rotary has only 1 tables", tables=lambda x: x[:1])
    refuses("k_cache must be BFloat16, got Float", attention=in_float32(0, 1, 2))
    refuses("k_caches must be BFloat16, got Float", attention=in_float32(1))


def in_float32(*which: int):
    """Layers of which some have a cache in float32."""
    return lambda layers: [
        replace(layer, **float_caches(layer)) if index in which else layer
        for index, layer in enumerate(layers)
    ]


def test_layers_are_checked_when_they_are_put_together():
    mine = three_layers()
    attention = [layer.layer() for layer in mine.attention]
    mlp = [test_gated_mlp.lay_out(weights) for weights in mine.mlp]
    with pytest.raises(RuntimeError, match="must have the same length, at least 1, got 3, 2 and 3"):
        ops.DecoderLayers(attention, mlp[:2], LAYER_ROTARY)
    with pytest.raises(RuntimeError, match="layer_rotary must be at least 0, got -1"):
        ops.DecoderLayers(attention, mlp, [0, -1, 0])
    other = test_gated_mlp.lay_out(test_gated_mlp.problem(1, dim=96)[2])
    with pytest.raises(RuntimeError, match="all layers must have the same input size and dtype"):
        ops.DecoderLayers(attention, [*mlp[:2], other], LAYER_ROTARY)


def test_opcheck():
    mine = three_layers(dtype=torch.float32)
    layers = mine.lay_out()
    *step, batch = mine.step()
    torch.library.opcheck(
        torch.ops.paged_stream.decoder_layers.default,
        (mine.residual, layers.handle, *step, list(batch), [], None),
    )
