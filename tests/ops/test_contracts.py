"""Schemas and fakes of every op, and what each says about arguments that break its contract."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from paged_stream import ops
from tests.ops import ops_reference as reference
from tests.ops.batches import make_batch, sequence
from tests.ops.test_advance_decode import decode_arguments
from tests.ops.test_cache_ops import angles, caches

KINDS = [
    (torch.float32, torch.float32),
    (torch.bfloat16, torch.bfloat16),
    (torch.float32, torch.int8),
    (torch.bfloat16, torch.int8),
]


def flattened(query, sink_query, k_cache, v_cache, batch, scoring) -> tuple:
    """Arguments of `ops.paged_attention` as the op's schema has them."""
    scores = (
        scoring.scale,
        scoring.alibi_slopes,
        scoring.softcap or 0.0,
        scoring.local_window or 0,
    )
    return (query, sink_query, k_cache, v_cache, list(batch), *scores)


def op_arguments(dtype, cache_dtype) -> dict[str, tuple]:
    k_cache, v_cache = caches(cache_dtype)
    if cache_dtype == torch.int8:
        k_cache.copy_(reference.quantize(torch.randn(k_cache.shape[:-1] + (64,))))
        v_cache.copy_(k_cache)
    else:
        k_cache.normal_(), v_cache.normal_()
    heads = torch.randn(5, 12, 64).to(dtype)
    query, key, value = heads.split([6, 3, 3], dim=1)
    slots, rotary = torch.tensor([3, 8, -1, 0, 20]), angles(5, 32)
    sink_query = torch.empty(5, 6, 64, dtype=dtype)
    key_rows, value_rows = k_cache[:5, :, 0], v_cache[4:, :, 1]
    batch = make_batch(
        [sequence(4, 20, 90, 3), sequence(4, 20, 900, 1, 0, 890)],
        dtype=dtype,
        cache_dtype=torch.int8 if cache_dtype == torch.int8 else None,
    )
    return {
        "rotary_and_cache": (
            *(query, sink_query, key, value, k_cache, v_cache, rotary, rotary, slots, False),
        ),
        "paged_attention": flattened(*batch.arguments()),
        "gather_blocks": (k_cache, v_cache, slots, rotary, True),
        "scatter_blocks": (
            *(key_rows.clone(), value_rows.clone(), k_cache, v_cache, slots, None, False),
        ),
        "rotary_reindex": (k_cache, slots, rotary, False),
        "copy_blocks": (torch.randn(2, 2, 4, 1, 4, 8).to(cache_dtype), torch.tensor([[0, 1]])),
        "rotary_table": (slots, torch.rand(16).double(), 1.0),
        "sample_tokens": (
            torch.randn(2, 9),
            [
                torch.tensor([0.0, 1.0]).double(),
                torch.tensor([0.0, 0.1]).double(),
                torch.tensor([0, 3]),
                torch.tensor([1.0, 0.5]).double(),
                torch.tensor([1, 2]),
            ],
            torch.tensor([3, 4]),
        ),
        "advance_decode": tuple(
            list(x) if isinstance(x, tuple) else x for x in decode_arguments().values()
        ),
        "lay_out_batch": (
            torch.arange(3).int(),
            torch.arange(8).int(),
            torch.tensor([[1, 2], [9, 0], [4, 0], [8, 2**31 - 1], [0, 0], [3, 4], [4, 4]]),
            4,
        ),
    }


@pytest.mark.parametrize("dtype, cache_dtype", KINDS)
@pytest.mark.parametrize("name", list(op_arguments(torch.float32, torch.float32)))
def test_opcheck(name, dtype, cache_dtype):
    op = getattr(torch.ops.paged_stream, name).default
    torch.library.opcheck(op, op_arguments(dtype, cache_dtype)[name])


def test_isa_by_unknown_name():
    with pytest.raises(
        RuntimeError, match='this processor does not support "mmx"; the names are "avx512bf16"'
    ):
        ops.set_cpu_isa("mmx")


def changed(parts: ops.BatchTensors | ops.Scoring, changes: dict) -> Any:
    """Whichever of the fields ``changes`` names, changed."""
    present = {name: change for name, change in changes.items() if name in parts._fields}
    return parts._replace(
        **{name: change(getattr(parts, name)) for name, change in present.items()}
    )


def attention_without(cache_dtype=None, **changes) -> None:
    sequences = [sequence(4, 20, 90, 3), sequence(4, 20, 900, 1)]
    names = ("query", "sink_query", "k_cache", "v_cache", "batch", "scoring")
    arguments = dict(
        zip(names, make_batch(sequences, cache_dtype=cache_dtype).arguments(), strict=True)
    )
    for name, change in changes.items():
        if name in arguments:
            arguments[name] = change(arguments[name])
    for name in ("batch", "scoring"):
        arguments[name] = changed(arguments[name], changes)
    ops.paged_attention(**arguments)


@pytest.mark.parametrize("name", ops.BatchTensors._fields)
def test_the_fields_of_a_batch_are_in_the_order_that_kernels_read_them_in(name):
    """Each is looked for where it is: the message names it, its dtype and its shape."""
    for change, message in (
        (lambda x: x.double(), "must be (Long|Int), got Double"),
        (lambda x: x[None], r"must have shape \[.*\]"),
    ):
        with pytest.raises(RuntimeError, match=f"paged_attention: {name} {message}"):
            attention_without(**{name: change})


def test_a_batch_has_all_its_fields():
    query, sink_query, k_cache, v_cache, batch, scoring = make_batch(
        [sequence(4, 20, 90, 3)]
    ).arguments()
    with pytest.raises(RuntimeError, match="batch must have 11 tensors, got 10"):
        ops.paged_attention(query, sink_query, k_cache, v_cache, batch[:10], scoring)


@pytest.mark.parametrize(
    "name, change, message",
    [
        ("query", lambda x: x[:, :5], r"sink_query must have shape .*\[4, 5, 64\], got \[4, 6, 64"),
        ("query", lambda x: x[..., :32], r"query must have shape .* = \[\*, \*, 64\], got \[4, 6"),
        ("query", lambda x: x.double(), r"query must be Float, got Double"),
        ("query", lambda x: x.transpose(0, 1).contiguous().transpose(0, 1), "query must be contig"),
        ("sink_query", lambda x: x[:3], r"sink_query must have shape .*\[4, 6, 64\], got \[3, 6"),
        ("v_cache", lambda x: x[:-1], r"v_cache must have the shape of k_cache, \[.*\], got \["),
        ("v_cache", lambda x: x.bfloat16(), r"v_cache must be Float, got BFloat16"),
        ("k_cache", lambda x: x[..., :60], r"k_cache must be contiguous from dimension 1"),
        ("block_table", lambda x: x.long(), r"block_table must be Int, got Long"),
        ("block_table", lambda x: x[:, :2], r"block_table must have at least 4 columns"),
        ("seq_lens", lambda x: x[:1], r"seq_lens must have shape \[B\] = \[2\], got \[1\]"),
        ("seq_lens", lambda x: x * 0 + 2**63 - 1, r"seq_lens\[0\], .* must be in .*, got 92233"),
        ("query_start_loc", lambda x: x * 0 + 2**31 - 1, r"query_start_loc must run from 0"),
        (
            "seq_lens",
            lambda x: x * 0 + 2,
            r"seq_lens\[0\], with a chunk of 3, must be in \[3, \d+\], got 2",
        ),
        ("query_start_loc", lambda x: x + 1, r"query_start_loc must run from 0 to 4, got 1 to 5"),
        ("window_size", lambda x: x * 0, r"window_size of sequence 0 must be in \[1, \d+\], got 0"),
        ("window_floor", lambda x: x.int(), r"window_floor must be Long, got Int"),
        ("window_floor", lambda x: x[:1], r"window_floor must have shape \[B\] = \[2\], got \[1\]"),
        ("window_floor", lambda x: x + 3, r"sequence 0 must be 0, or at least 4 .*, got 3"),
        ("window_floor", lambda x: x + 88, r"at most its first query's position 87, got 88"),
        ("window_floor", lambda x: x - 1, r"sequence 0 must be 0, or at least 4 .*, got -1"),
        ("ring_blocks", lambda x: x * 0 + 1, r"ring_blocks of sequence . must be at least 2"),
        (
            "num_sink_tokens",
            lambda x: x - 5,
            r"num_sink_tokens of sequence 0 must be in \[0, \d+\], got -1",
        ),
        ("alibi_slopes", lambda x: torch.ones(5), r"alibi_slopes must have shape .*\[6\], got"),
        ("softcap", lambda x: -2.5, "softcap must be a positive float32, or 0 for none, got -2.5"),
        ("softcap", lambda x: float("nan"), "softcap must be a positive float32"),
        ("softcap", lambda x: 1e-60, "softcap must be a positive float32"),
        ("local_window", lambda x: -1, "local_window must be at least 1, or 0 for none, got -1"),
    ],
)
def test_attention_names_the_bad_argument(name, change, message):
    with pytest.raises(RuntimeError, match="paged_attention.*" + message):
        attention_without(**{name: change})


@pytest.mark.parametrize(
    "name, change, message",
    [
        ("query", lambda x: x[..., :32], r"query must have shape .* = \[\*, \*, 64\], got \[4, 6"),
        ("query", lambda x: x.to(torch.int8), "query must be Float or BFloat16 on CPU, got Char"),
        ("query", lambda x: x.bfloat16(), "sink_query must be BFloat16, got Float"),
        ("v_cache", lambda x: x[..., :64].float(), "v_cache must have the shape of k_cache"),
        ("v_cache", lambda x: x[..., :64], "v_cache must be contiguous from dimension 1"),
        (
            "k_cache",
            lambda x: x[..., :64].contiguous(),
            r"head_dim must be a multiple of 8 from 8 to 256, got 60 \(row_size minus the 4-byte",
        ),
        (
            "k_cache",
            lambda x: x.view(torch.uint8),
            "must be Float, BFloat16 or Char on CPU, got Byte",
        ),
    ],
)
def test_attention_over_int8_names_the_bad_argument(name, change, message):
    with pytest.raises(RuntimeError, match="paged_attention.*" + message):
        attention_without(torch.int8, **{name: change})


@pytest.mark.parametrize(
    "place, change, message",
    [
        (2, lambda x: x.bfloat16(), "key must be Float, got BFloat16"),
        (3, lambda x: x.to(torch.int8), "value must be Float or BFloat16 on CPU, got Char"),
        (1, lambda x: x.bfloat16(), "sink_query must be Float, got BFloat16"),
        (3, lambda x: x[..., :60], r"value must have shape .* = \[5, 3, 64\], got \[5, 3, 60\]"),
    ],
)
def test_what_is_quantised_must_be_the_models(place, change, message):
    arguments = list(op_arguments(torch.float32, torch.int8)["rotary_and_cache"])
    arguments[place] = change(arguments[place])
    with pytest.raises(RuntimeError, match="rotary_and_cache: " + message):
        ops.rotary_and_cache(*arguments)


def test_int8_blocks_take_rows_with_their_scales():
    arguments = list(op_arguments(torch.float32, torch.int8)["scatter_blocks"])
    arguments[0] = arguments[0][..., :64]
    message = r"key must have shape \[N, num_kv_heads, row_size\] = \[\*, 3, 68\], got \[5, 3, 64\]"
    with pytest.raises(RuntimeError, match=message):
        ops.scatter_blocks(*arguments)
    arguments[0] = torch.randn(5, 3, 68)
    with pytest.raises(RuntimeError, match="key must be Char, got Float"):
        ops.scatter_blocks(*arguments)


def test_softcap_and_alibi_exclude_each_other():
    with pytest.raises(RuntimeError, match="softcap and alibi_slopes must not both be given"):
        attention_without(softcap=lambda x: 30.0, alibi_slopes=lambda x: torch.ones(6))


@pytest.mark.parametrize("count", [0, 5])
def test_heads_must_share_kv_heads_evenly(count):
    message = f"num_heads must be a multiple of num_kv_heads 2, got {count}"
    with pytest.raises(RuntimeError, match=message):
        attention_without(query=lambda x: x[:, :count], sink_query=lambda x: None)


@pytest.mark.parametrize("block_id", [-1, 1000])
def test_attention_refuses_block_ids_outside_the_cache(block_id):
    with pytest.raises(
        RuntimeError, match=rf"for position \d+, must be a block id in \[0, \d+\), got {block_id}"
    ):
        attention_without(block_table=lambda table: torch.full_like(table, block_id))


def test_the_cache_has_at_least_the_blocks_of_each_sequence():
    """Or a table of few blocks and one stride could stand for more keys than memory has bytes."""
    with pytest.raises(RuntimeError, match="k_cache must have at least the 3 blocks of sequence 0"):
        attention_without(k_cache=lambda x: x[:2], v_cache=lambda x: x[:2])


def test_slots_may_lie_in_the_memory_that_is_written():
    """A copied block lies over the slots of the rows behind it."""
    k_cache = torch.zeros(4, 1, 2, 8)
    slots = k_cache.view(-1).view(torch.int64)[:3]
    slots.copy_(torch.tensor([0, 1, 2]))
    key = torch.full((3, 1, 8), -3e38)
    ops.scatter_blocks(key, key, k_cache, torch.zeros_like(k_cache), slots, None, False)
    assert torch.equal(k_cache.view(-1, 8)[:3], key[:, 0])


def test_full_attention_has_no_sinks():
    with pytest.raises(RuntimeError, match="full attention, so num_sink_tokens must be 0, got 4"):
        attention_without(window_size=lambda x: x * 0 + 2**31 - 1)


def test_full_attention_has_no_floor():
    with pytest.raises(RuntimeError, match="full attention, so window_floor must be 0, got 5"):
        attention_without(
            window_size=lambda x: x * 0 + 2**31 - 1,
            num_sink_tokens=lambda x: x * 0,
            window_floor=lambda x: x + 5,
        )


@pytest.mark.parametrize("slot", [-2, 36])
def test_slots_outside_the_cache(slot):
    k_cache, v_cache = caches(torch.float32)
    message = rf"slot_mapping values must be in \[-1, 36\), got {slot} at index 1"
    with pytest.raises(RuntimeError, match=message):
        ops.gather_blocks(k_cache, v_cache, torch.tensor([0, slot]))
    with pytest.raises(RuntimeError, match=message):
        ops.rotary_reindex(k_cache, torch.tensor([0, slot]), angles(2, 64))


def test_rotary_shapes():
    k_cache, v_cache = caches(torch.float32)
    for dim in (33, 66):
        with pytest.raises(
            RuntimeError, match=f"even rotary_dim of at most head_dim 64, got {dim}"
        ):
            ops.gather_blocks(k_cache, v_cache, torch.zeros(2).long(), torch.ones(2, dim))
    with pytest.raises(RuntimeError, match=r"rotary must have shape .* = \[2, \*\], got \[3, 64\]"):
        ops.gather_blocks(k_cache, v_cache, torch.zeros(2).long(), torch.ones(3, 64))


def test_sink_query_needs_its_angles():
    arguments = list(op_arguments(torch.float32, torch.float32)["rotary_and_cache"])
    arguments[7] = None
    with pytest.raises(RuntimeError, match="sink_query and sink_rotary must be given together"):
        ops.rotary_and_cache(*arguments)


@pytest.mark.parametrize(
    "pairs, message",
    [
        ([[0, 4]], r"lie in \[0, 4\), got 4 in pair 0"),
        ([[0, 1], [2, 1]], "not name destination 1 twice"),
        ([[0, 1], [1, 2]], "not use block 1 both as a source and as a destination"),
    ],
)
def test_copy_blocks_refuses_ambiguous_pairs(pairs, message):
    with pytest.raises(RuntimeError, match=message):
        ops.copy_blocks(torch.zeros(1, 2, 4, 1, 4, 8), torch.tensor(pairs))
