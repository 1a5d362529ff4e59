"""`paged_attention` on a GPU against the dense reference."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from paged_stream import ops
from tests.ops.batches import TOLERANCE, make_batch
from tests.ops.test_paged_attention import floored, mixed, sequence, sequences

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
KINDS = [(q, cache) for q in DTYPES for cache in (None, torch.int8, torch.float8_e4m3fn)]


@pytest.mark.parametrize("dtype, cache_dtype", KINDS)
@pytest.mark.parametrize("head_dim", [8, 40, 64, 80, 96, 128, 192, 256])
def test_head_dims(dtype, cache_dtype, head_dim):
    make_batch(mixed(), head_dim=head_dim, dtype=dtype, cache_dtype=cache_dtype).check("cuda")


@pytest.mark.parametrize("block_size", [1, 3, 16, 64])
@pytest.mark.parametrize("num_kv_heads, group", [(4, 1), (2, 3), (1, 8), (1, 71)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_blocks_and_groups(dtype, num_kv_heads, group, block_size):
    heads = {"num_kv_heads": num_kv_heads, "group": group}
    make_batch(mixed(), block_size=block_size, dtype=dtype, **heads).check("cuda")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layer", [{}, {"with_alibi": True}, {"softcap": 1.0}])
@pytest.mark.parametrize("local_window", [None, 1, 9, 50, 300])
def test_layers(dtype, layer, local_window):
    for batch in (mixed(), floored()):
        make_batch(batch, dtype=dtype, local_window=local_window, **layer).check("cuda")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("chunk", [1, 3, 130])
def test_long_windows(dtype, chunk):
    many = [sequence(4, 4092, 100_000, chunk), sequence(0, None, 9000, chunk)]
    many += [sequence(300, 1000, 2**40, chunk)]
    make_batch(many, num_kv_heads=1, group=4, dtype=dtype, with_alibi=True).check("cuda")


@settings(max_examples=200, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_random_batches(data):
    softcap = data.draw(st.one_of(st.none(), st.floats(0.1, 60)))
    dtype, cache_dtype = data.draw(st.sampled_from(KINDS))
    make_batch(
        data.draw(st.lists(sequences(), min_size=1, max_size=6)),
        num_kv_heads=data.draw(st.integers(1, 3)),
        group=data.draw(st.integers(1, 8)),
        head_dim=data.draw(st.sampled_from([16, 40, 64, 80, 128, 256])),
        block_size=data.draw(st.sampled_from([1, 4, 5, 8, 16, 32])),
        dtype=dtype,
        cache_dtype=cache_dtype,
        with_sink_query=data.draw(st.booleans()),
        with_alibi=softcap is None and data.draw(st.booleans()),
        softcap=softcap,
        local_window=data.draw(st.one_of(st.none(), st.integers(1, 260))),
        seed=data.draw(st.integers(0, 99)),
    ).check("cuda")


@pytest.mark.parametrize("dtype, cache_dtype", KINDS)
def test_the_same_bits_each_time_and_in_any_batch(dtype, cache_dtype):
    batch = make_batch(
        [sequence(4, 4092, 100_000, 1)] + mixed(), dtype=dtype, cache_dtype=cache_dtype
    )
    arguments = batch.arguments_on("cuda")
    expected = ops.paged_attention(*arguments)
    for _ in range(20):
        assert torch.equal(ops.paged_attention(*arguments), expected)
    query, sink_query, k_cache, v_cache, tensors, scoring = arguments
    first = ops.BatchTensors(*(x[:1] for x in tensors))
    first = first._replace(query_start_loc=tensors.query_start_loc[:2])
    alone = ops.paged_attention(query[:1], sink_query[:1], k_cache, v_cache, first, scoring)
    assert torch.equal(alone, expected[:1])


def test_in_a_graph_sequences_grow():
    """A graph captured for some lengths is right for others, and for fewer sequences."""
    now, later = (
        make_batch(
            [sequence(4, 900, seq_len, 1) for _ in range(3)], dtype=torch.bfloat16, seed=seed
        )
        for seed, seq_len in enumerate((5000, 5016))
    )
    static = now.arguments_on("cuda")
    ops.paged_attention(*static)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = ops.paged_attention(*static)
    *tensors, batch, _ = static
    *later_tensors, later_batch, _ = later.arguments()
    for to, x in zip((*tensors, *batch), (*later_tensors, *later_batch), strict=True):
        to.copy_(x)
    graph.replay()
    tolerance = TOLERANCE[torch.bfloat16]
    torch.testing.assert_close(out.cpu().double(), later.expected(), atol=tolerance, rtol=tolerance)
    first = out[:1].clone()
    batch.query_start_loc.copy_(torch.tensor([0, 1, 1, 1]))  # the other chunks are empty
    graph.replay()
    assert torch.equal(out[:1], first)
