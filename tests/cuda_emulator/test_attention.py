"""The kernels of `paged_attention` in the emulator against the dense reference."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from paged_stream.ops import BatchTensors, Scoring
from tests.cuda_emulator.emulator import EmulatorError
from tests.ops import batches
from tests.ops import ops_reference as reference
from tests.ops.batches import Batch, make_batch, sequence

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
INT8, FP8 = torch.int8, torch.float8_e4m3fn
# In the order of DType in csrc/include/number_types.h.
DTYPES = [F32, BF16, INT8, F16, FP8]
# Query dtype, cache dtype (None for the same), and the largest head_dim compiled for them.
KINDS = [
    *((BF16, None, 256), (BF16, INT8, 256), (BF16, FP8, 64)),
    *((F16, None, 64), (F16, INT8, 64), (F16, FP8, 256)),
    *((F32, None, 256), (F32, INT8, 256), (F32, FP8, 64)),
]
MIXED = [
    (4, 100, 4_000_037, 1),
    (0, 50, 77, 0),
    (7, 60, 5000, 21),
    (20, 30, 12, 12),
    (0, None, 70, 1),
]


def attend(
    emulator,
    query: Tensor,
    sink_query: Tensor | None,
    k_cache: Tensor,
    v_cache: Tensor,
    tensors: BatchTensors,
    scoring: Scoring,
) -> Tensor:
    """`ops.paged_attention` in the emulator, with buffers of exactly the size that kernels may
    access."""
    num_tokens, num_heads, head_dim = query.shape
    num_blocks, num_kv_heads, block_size, row_size = k_cache.shape
    # Rows of queries are strided; the buffer ends with the last row.
    length = (num_tokens - 1) * query.stride(0) + num_heads * head_dim
    strided = query.as_strided((length,), (1,)).contiguous()
    out = torch.full(query.shape, torch.nan, dtype=query.dtype)
    emulator.call(
        "paged_attention",
        DTYPES.index(query.dtype),
        DTYPES.index(k_cache.dtype),
        num_tokens,
        strided,
        query.stride(0),
        strided if sink_query is None else sink_query,
        (query if sink_query is None else sink_query).stride(0),
        out,
        num_heads,
        num_kv_heads,
        head_dim,
        k_cache,
        v_cache,
        num_blocks,
        block_size,
        row_size * k_cache.element_size(),
        *tensors,
        num_tokens,
        *tensors.block_table.shape,
        scoring.scale,
        scoring.alibi_slopes,
        float(scoring.softcap or 0.0),
        scoring.local_window or 2**63 - 1,
    )
    return out


def run(emulator, batch: Batch) -> Tensor:
    return attend(emulator, *batch.arguments())


def check(emulator, batch: Batch) -> Tensor:
    out, expected = run(emulator, batch), batch.expected()
    tolerance = batches.TOLERANCE[out.dtype]
    torch.testing.assert_close(out.double(), expected, atol=tolerance, rtol=tolerance)
    assert batches.worst_row_error(out, expected) <= tolerance
    return out


def check_edges(emulator, dtype: torch.dtype, cache_dtype: torch.dtype | None) -> None:
    """Check batches in which a key that is missing at any boundary changes a row visibly."""
    for sequences in batches.EDGES.values():
        for local_window in (None, 102):
            batch = make_batch(
                of(*sequences),
                num_kv_heads=1,
                dtype=dtype,
                cache_dtype=cache_dtype,
                local_window=local_window,
                even=True,
            )
            check(emulator, batch)


def of(*sizes: tuple) -> list[reference.Sequence]:
    return [sequence(*size) for size in sizes]


@pytest.mark.parametrize("dtype, cache_dtype, widest", KINDS)
def test_dtypes(emulator, dtype, cache_dtype, widest):
    for head_dim in (8, widest):
        batch = make_batch(
            of((4, 70, 5000, 1), (5, 20, 40, 18)),
            num_kv_heads=1,
            head_dim=head_dim,
            dtype=dtype,
            cache_dtype=cache_dtype,
            seed=head_dim,
        )
        check(emulator, batch)


@pytest.mark.parametrize("dtype, cache_dtype", [(BF16, None), (BF16, INT8), (F32, None)])
def test_edges(emulator, dtype, cache_dtype):
    check_edges(emulator, dtype, cache_dtype)


@pytest.mark.parametrize("dtype", [BF16, F32])
@pytest.mark.parametrize("block_size", [1, 3, 16])
def test_block_sizes(emulator, dtype, block_size):
    check(emulator, make_batch(of(*MIXED), num_kv_heads=1, block_size=block_size, dtype=dtype))


@pytest.mark.parametrize("dtype", [BF16, F32])
@pytest.mark.parametrize("num_kv_heads, group", [(2, 1), (1, 4), (2, 8), (1, 17), (1, 71)])
def test_groups(emulator, dtype, num_kv_heads, group):
    batch = make_batch(
        of((4, 40, 5000, 1), (0, 9, 30, 6)),
        num_kv_heads=num_kv_heads,
        group=group,
        dtype=dtype,
        head_dim=32,
    )
    check(emulator, batch)


@pytest.mark.parametrize("group, length", [(1, 256), (4, 256), (5, 512)])
@pytest.mark.parametrize("beyond", [0, 1, 300])
def test_splits_are_merged(emulator, group, length, beyond):
    """There are just enough keys for two splits, one more, and far more; and for one less."""
    batch = make_batch(
        of((4, 2 * length + beyond - 4, 9000, 1), (0, None, 2 * length - 1, 1)),
        num_kv_heads=1,
        group=group,
        head_dim=16,
        dtype=BF16,
        with_alibi=True,
    )
    check(emulator, batch)


@pytest.mark.parametrize("sinks", [63, 64, 65, 300])
@pytest.mark.parametrize("chunk", [1, 17])
def test_many_sinks(emulator, sinks, chunk):
    """The sinks end anywhere in a step, or after the first split."""
    batch = make_batch(
        of((sinks, 30, 3000, chunk), (sinks, 30, sinks + 2, min(chunk, 9))),
        num_kv_heads=1,
        group=1,
        head_dim=16,
        dtype=BF16,
    )
    check(emulator, batch)


@pytest.mark.parametrize("dtype", [BF16, F32])
@pytest.mark.parametrize("layer", [{"with_alibi": True}, {"softcap": 0.05}, {"softcap": 30.0}])
@pytest.mark.parametrize("local_window", [None, 1, 102])
def test_layers(emulator, dtype, layer, local_window):
    sequences = of(*MIXED, (4, 100, 900, 3))
    check(
        emulator,
        make_batch(sequences, num_kv_heads=1, dtype=dtype, local_window=local_window, **layer),
    )


@pytest.mark.parametrize("dtype", [BF16, F32])
def test_floors(emulator, dtype):
    sequences = of(
        *((20, 60, 5000, 1, 0, 4970), (20, 60, 5000, 15, 1, 4955), (20, 60, 41, 10, 0, 25)),
        *(
            (20, 60, 26, 1, 0, 25),
            (0, 60, 41, 3, 0, 7),
            (3, 1, 50, 3, 0, 47),
            (4, 20, 90, 3, -2, 87),
        ),
    )
    check(emulator, make_batch(sequences, num_kv_heads=1, dtype=dtype, with_alibi=True))


@pytest.mark.parametrize("dtype", [BF16, F32])
def test_positions_beyond_int32(emulator, dtype):
    sequences = of((4, 40, 2**40, 1), (4, 40, 2**31 + 5, 5), (4, 40, 2**40, 3, 0, 2**40 - 9))
    check(emulator, make_batch(sequences, num_kv_heads=1, dtype=dtype, with_alibi=True))


def test_what_a_query_sees_is_not_hidden(emulator):
    """A NaN key is hidden by a local window of 102 and visible in one of 103."""
    batch = make_batch(of((4, 100, 900, 1)), local_window=102, dtype=BF16)
    check(emulator, batch)
    batch.local_window = 103
    assert run(emulator, batch).isnan().all()


def test_as_many_tokens_as_sequences_in_unequal_chunks(emulator):
    """Every chunk is then split, including one of many rows."""
    sequences = of((4, 300, 5000, 9), *[(4, 20, 77, 0)] * 9, (4, 30, 60, 2))
    check(emulator, make_batch(sequences, num_kv_heads=1, dtype=BF16, head_dim=16))


@pytest.mark.parametrize("cache_dtype", [None, INT8])
def test_result_does_not_depend_on_the_rest_of_the_batch(emulator, cache_dtype):
    sequences = of((4, 700, 9000, 1), (4, 30, 40, 1), (4, 50, 300, 25))
    batch = make_batch(sequences, dtype=BF16, num_kv_heads=1, cache_dtype=cache_dtype)
    alone = replace(
        batch,
        sequences=sequences[:1],
        query=batch.query[:1],
        sink_query=batch.sink_query[:1],
        block_table=batch.block_table[:1],
    )
    assert torch.equal(run(emulator, batch)[:1], check(emulator, alone))


def test_a_block_that_is_not_there(emulator):
    batch = make_batch(of((4, 40, 50, 1)), dtype=BF16)
    batch.block_table[0, 1] = len(batch.k_cache)
    with pytest.raises(EmulatorError, match="trap"):
        run(emulator, batch)


@pytest.mark.parametrize("seed", range(16))
def test_random_batches(emulator, seed):
    draw = random.Random(seed)
    sequences = []
    for _ in range(draw.randint(1, 3)):
        sinks, window = draw.randint(0, 40), draw.choice([None, draw.randint(1, 200)])
        chunk = draw.choice([1, 1, draw.randint(0, 40)])
        deepest = 300 if window is None else draw.choice([300, 4_000_100])
        seq_len = draw.randint(max(chunk, 1), max(chunk, 1) + deepest)
        first_query, floor = seq_len - chunk, 0
        if window is not None and first_query >= max(sinks, 1):
            least = max(sinks, 1, first_query - window - 5)
            floor = draw.choice([0, draw.randint(least, first_query)])
        sequences.append(sequence(sinks, window, seq_len, chunk, draw.randint(0, 2), floor))
    if not sum(s.chunk for s in sequences):
        sequences.append(sequence(4, 20, 77, 1))
    dtype, cache_dtype, widest = draw.choice(KINDS)
    softcap = draw.choice([None, draw.uniform(0.1, 60)])
    batch = make_batch(
        sequences,
        num_kv_heads=draw.randint(1, 2),
        group=draw.randint(1, 8),
        head_dim=draw.choice([d for d in (16, 40, 64, 96, 128) if d <= widest]),
        block_size=draw.choice([1, 4, 5, 8, 16, 32]),
        dtype=dtype,
        cache_dtype=cache_dtype,
        with_sink_query=draw.random() < 0.8,
        with_alibi=softcap is None and draw.random() < 0.5,
        softcap=softcap,
        local_window=draw.choice([None, draw.randint(1, 260)]),
        seed=seed,
    )
    check(emulator, batch)
