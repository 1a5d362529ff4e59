"""All layers in one op: the same bits as block by block."""

from __future__ import annotations

import gc

import pytest
import torch

from paged_stream import ops
from tests.ops import test_gated_mlp
from tests.ops.test_attention_block import DIM, HEAD_DIM, KV_HEADS, problem

LAYER_ROTARY = [1, 0, 1]


def layers_and_step(kind="plain", dtype=torch.bfloat16, cache_dtype=None, *, bias=True, **layer):
    """Blocks of three layers, and what a step over five sequences gives them."""
    attention, caches = [], []
    for local_window in (None, 9, None):
        residual, _, block, *step = problem(
            kind, dtype, cache_dtype, bias=bias, local_window=local_window, **layer
        )
        attention.append(block)
        caches.append((step[2], step[3]))
    mlp = [
        ops.GatedMLP(*test_gated_mlp.problem(1, kind, dtype, bias=bias, dim=DIM)[2:])
        for _ in attention
    ]
    rotary, sink_rotary, _, _, slots, *batch = step
    tables = [(rotary, sink_rotary), (rotary.flip(1), sink_rotary.flip(1))]
    return residual, attention, mlp, tables, caches, slots, batch


def block_by_block(residual, attention, mlp, tables, caches, slots, batch):
    delta = None
    for attend, feed, index, cache in zip(attention, mlp, LAYER_ROTARY, caches, strict=True):
        attended = ops.attention_block(
            residual, delta, attend, *tables[index], *cache, slots, *batch
        )
        delta = ops.gated_mlp(residual, attended, feed)
    return delta


def run(residual, attention, mlp, tables, caches, slots, batch, layers=None):
    layers = layers or lay_out(attention, mlp, residual.dtype)
    rotary, sink_rotary = zip(*tables, strict=True)
    sinks = [] if sink_rotary[0] is None else list(sink_rotary)
    k_caches, v_caches = zip(*caches, strict=True)
    return ops.decoder_layers(
        residual, layers, list(rotary), sinks, k_caches, v_caches, slots, *batch
    )


def lay_out(attention, mlp, dtype):
    return ops.DecoderLayers(attention, mlp, LAYER_ROTARY, KV_HEADS, HEAD_DIM, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("cache_dtype", [None, torch.int8])
@pytest.mark.parametrize("kind", ["plain", "Q4_1"])
@pytest.mark.parametrize("options", [{}, {"softcap": 5.0}, {"with_alibi": True}])
@pytest.mark.parametrize("grown", [False, True])
def test_equals_its_blocks(dtype, cache_dtype, kind, options, grown):
    arguments = layers_and_step(kind, dtype, cache_dtype, bias=grown, **options)
    residual, attention, mlp, tables, caches, *step = arguments
    if not grown:
        tables = [(rotary, None) for rotary, _ in tables]
    copies = [(k.clone(), v.clone()) for k, v in caches]
    expected_residual = residual.clone()
    expected = block_by_block(expected_residual, attention, mlp, tables, copies, *step)
    result = run(residual, attention, mlp, tables, caches, *step)
    assert result.isfinite().all()
    assert torch.equal(result, expected)
    assert torch.equal(residual, expected_residual)
    for cache, copy in zip(caches, copies, strict=True):
        for written, wanted in zip(cache, copy, strict=True):
            assert torch.equal(written.nan_to_num(7), wanted.nan_to_num(7))


def test_no_tokens():
    residual, attention, mlp, tables, caches, slots, batch = layers_and_step()
    batch = [batch[0], torch.zeros_like(batch[1]), *batch[2:]]
    tables = [(rotary[:0], sinks[:0]) for rotary, sinks in tables]
    result = run(residual[:0], attention, mlp, tables, caches, slots[:0], batch)
    assert result.shape == (0, DIM)


def test_weights_live_as_long_as_their_layers():
    residual, attention, mlp, *step = layers_and_step()
    layers = lay_out(attention, mlp, residual.dtype)
    expected = run(residual.clone(), attention, mlp, *step, layers=layers)
    del attention, mlp
    gc.collect()
    noise = [torch.full((300, 300), 7.0) for _ in range(50)]  # where freed weights would have been
    assert torch.equal(run(residual.clone(), None, None, *step, layers=layers), expected)
    handle = layers.handle
    del layers, noise
    with pytest.raises(RuntimeError, match="layers must be a handle from lay_out_layers"):
        torch.ops.paged_stream.decoder_layers.default(
            *(residual, handle, [], [], [], [], step[2], *step[3])
        )


def test_misuse_is_explained():
    residual, attention, mlp, tables, caches, slots, batch = layers_and_step()
    layers = lay_out(attention, mlp, residual.dtype)

    def refuses(message, *, residual=residual, tables=tables, caches=caches):
        with pytest.raises(RuntimeError, match=message):
            run(residual, None, None, tables, caches, slots, batch, layers)

    refuses("residual must be BFloat16", residual=residual.float())
    refuses("residual must have shape", residual=residual[:, :32])
    refuses("rotary must have shape", residual=residual[:3])
    refuses("k_caches and v_caches must be 3 each, got 2", caches=caches[:2])
    refuses("rotary must have the table 1", tables=tables[:1])
    other = [tuple(x.float() for x in pair) for pair in caches]
    refuses("k_caches must be BFloat16", caches=other)
    refuses("k_caches must be BFloat16, got Float", caches=[caches[0], other[1], caches[2]])
    with pytest.raises(RuntimeError, match="norms and weights must be 3 each, got 2"):
        lay_out(attention, mlp[:2], residual.dtype)
    with pytest.raises(RuntimeError, match="packed_weight must have shape"):
        lay_out([block._replace(num_heads=5) for block in attention], mlp, residual.dtype)
    with pytest.raises(RuntimeError, match="input must be BFloat16, got Float"):
        lay_out(attention, mlp, torch.float32)


def test_opcheck():
    residual, attention, mlp, tables, caches, slots, batch = layers_and_step(dtype=torch.float32)
    layers = lay_out(attention, mlp, residual.dtype)
    rotary, sink_rotary = (list(part) for part in zip(*tables, strict=True))
    k_caches, v_caches = (list(part) for part in zip(*caches, strict=True))
    torch.library.opcheck(
        torch.ops.paged_stream.decoder_layers.default,
        (residual, layers.handle, rotary, sink_rotary, k_caches, v_caches, slots, *batch),
    )
