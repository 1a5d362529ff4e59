"""What the xformers backend asks xformers for, with a stand-in that does as the masks say."""

from __future__ import annotations

import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paged_stream.attention.forward_batch import ForwardBatch
from paged_stream.attention.xformers import XformersBackend, load_kernels
from tests.attention.partial_stand_in import kernels
from tests.ops.batches import TOLERANCE, make_batch, sequence

masks = pytest.importorskip("xformers.ops.fmha.attn_bias")

DECODE = [(4, 100, 4_000_037, 1), (4, 100, 60, 1), (0, 50, 777, 1), (0, None, 130, 1)]
AMONG_SINKS = [(20, 30, 12, 12), (20, 30, 8, 1), (20, 30, 70, 60), (20, 30, 21, 3)]
CHUNKS = [(4, 100, 5000, 45), (7, 60, 30, 30), (0, 50, 777, 2), (0, None, 70, 40)]
FLOORED = [(20, 60, 5000, 1, 0, 4970), (20, 60, 5000, 45, 0, 4930), (16, 60, 41, 1, 0, 32)]
EMPTY = [(0, 50, 77, 0)]


def check(sequences, dtype=torch.float32, **settings) -> None:
    batch = make_batch(
        [sequence(*s) for s in sequences], with_sink_query=True, dtype=dtype, **settings
    )
    query, sink_query, k_cache, v_cache, tensors, scoring = batch.arguments()
    per_token = torch.repeat_interleave(tensors.num_sink_tokens, tensors.query_start_loc.diff())
    # In the engine both rotations of a token among the sinks agree.
    among_sinks = tensors.positions < per_token
    sink_query[among_sinks] = query[among_sinks]
    step = ForwardBatch(tensors=tensors, has_gap=True, host=tensors)
    backend = XformersBackend(kernels(masks))
    for _ in range(2):  # two layers
        output = backend.forward(query, sink_query, k_cache, v_cache, step, scoring)
        assert output.dtype == query.dtype and output.shape == query.shape
        tolerance = TOLERANCE[dtype]
        torch.testing.assert_close(
            output.double(), batch.expected(), atol=tolerance, rtol=tolerance
        )


def test_parts_in_bfloat16_are_merged_and_rounded_once():
    check([*DECODE, *CHUNKS, *AMONG_SINKS], dtype=torch.bfloat16)


@pytest.mark.parametrize(
    "sequences",
    [DECODE, AMONG_SINKS, CHUNKS, FLOORED, [*EMPTY, *DECODE, *CHUNKS, *AMONG_SINKS, *FLOORED]],
    ids=["decode", "among sinks", "chunks", "floors", "mixed"],
)
@pytest.mark.parametrize("num_kv_heads, group", [(2, 1), (2, 3), (1, 4)])
def test_equals_the_dense_reference(sequences, num_kv_heads, group):
    check(sequences, num_kv_heads=num_kv_heads, group=group, head_dim=32)


@pytest.mark.parametrize("sequences", [DECODE[:1], CHUNKS[:1], DECODE[2:3]])
def test_a_batch_that_is_one_call(sequences):
    check(sequences, block_size=32)


@settings(max_examples=40)
@given(data=st.data())
def test_any_batch(data):
    sequences = []
    for _ in range(data.draw(st.integers(1, 4))):
        sinks, window = data.draw(st.integers(0, 40)), data.draw(st.integers(1, 70) | st.none())
        if window is None:
            sinks = 0
        chunk = data.draw(st.integers(0, 20))
        length = data.draw(st.integers(chunk, 200))
        sequences.append((sinks, window, max(length, 1), min(chunk, max(length, 1))))
    if any(s[3] for s in sequences):
        check(sequences, num_kv_heads=2, group=2, head_dim=32)


SUITS = {
    "head_dim": 64,
    "block_size": 16,
    "dtype": torch.bfloat16,
    "kv_dtype": torch.bfloat16,
    "features": (),
}


def test_what_suits():
    XformersBackend.check(**SUITS)
    XformersBackend.check(**(SUITS | {"dtype": torch.float16, "kv_dtype": torch.float16}))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"head_dim": 80}, "head_dim 80"),
        ({"block_size": 24}, "block_size 24"),
        ({"dtype": torch.float32, "kv_dtype": torch.float32}, "dtype torch.float32"),
        ({"kv_dtype": torch.int8}, "a KV cache of torch.int8"),
        ({"features": ("ALiBi", "a soft cap")}, "ALiBi; a soft cap"),
    ],
)
def test_what_does_not_suit_is_named(settings, message):
    with pytest.raises(ValueError, match=message):
        XformersBackend.check(**(SUITS | settings))


def test_a_missing_xformers_names_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "xformers.ops", None)
    with pytest.raises(ImportError, match="pip install xformers"):
        load_kernels()


def test_the_paged_operator_steps_through_blocks_whole():
    pytest.importorskip("triton")
    operator = load_kernels().paged_operator
    assert [operator(size).BLOCK_N for size in (16, 32, 48, 64, 128)] == [16, 32, 16, 64, 64]
