"""`paged_attention` against the dense reference."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paged_stream import ops
from tests.ops.batches import Batch, make_batch, sequence

DTYPES = [torch.float32, torch.bfloat16]
# Of queries, and of the cache if it is another.
KINDS = [(dtype, cache_dtype) for dtype in DTYPES for cache_dtype in (None, torch.int8)]
MIXED = [
    (4, 100, 4_000_037, 1),  # decode, deep in a stream
    (4, 100, 30, 30),  # whole prompt, shorter than the window
    (7, 60, 5000, 45),  # chunk in the middle of a stream
    (20, 30, 12, 12),  # prompt shorter than the sinks
    (0, 50, 77, 0),  # nothing to compute
    (0, 50, 777, 2),
    (0, None, 130, 1),
    (0, None, 70, 40),
]
# With a floor; in the default blocks of 16 the last sink block holds positions 16 to 31.
FLOORED = [
    (20, 60, 5000, 1, 0, 4970),  # inside the window
    (20, 60, 5000, 45, 0, 4930),
    (20, 60, 5000, 45, 1, 4955),  # at the first query, so it sees sinks and itself only
    (20, 60, 4_000_037, 1, 0, 4_000_036),
    (20, 60, 41, 10, 0, 20),  # right behind the sinks: nothing is missing
    (20, 60, 41, 10, 0, 25),  # in the last sink block
    (20, 60, 26, 1, 0, 25),
    (16, 60, 41, 1, 0, 32),  # between whole blocks
    (0, 60, 41, 3, 0, 7),
    (20, 60, 5000, 3, 0, 4000),  # long before the window
    (3, 1, 50, 3, 0, 47),
    (3, 9, 50, 0, 0, 90),  # nothing to compute
]


def mixed() -> list:
    return [sequence(*args) for args in MIXED]


def floored() -> list:
    return [sequence(*args) for args in FLOORED]


@pytest.mark.parametrize("dtype, cache_dtype", KINDS)
@pytest.mark.parametrize("head_dim", [8, 16, 24, 32, 40, 64, 80, 96, 128, 256])
def test_head_dims(isa, dtype, cache_dtype, head_dim):
    make_batch(mixed(), head_dim=head_dim, dtype=dtype, cache_dtype=cache_dtype).check()


@pytest.mark.parametrize("block_size", [1, 3, 4, 8, 16, 32, 64])
@pytest.mark.parametrize("cache_dtype", [None, torch.int8])
def test_block_sizes(isa, cache_dtype, block_size):
    make_batch(mixed(), block_size=block_size, cache_dtype=cache_dtype).check()


@pytest.mark.parametrize("num_kv_heads, group", [(1, 1), (4, 1), (1, 8), (2, 4), (3, 3), (1, 71)])
@pytest.mark.parametrize("dtype, cache_dtype", KINDS)
def test_groups(isa, dtype, cache_dtype, num_kv_heads, group):
    make_batch(
        mixed(), num_kv_heads=num_kv_heads, group=group, dtype=dtype, cache_dtype=cache_dtype
    ).check()


@pytest.mark.parametrize("chunk", [1, 2, 70])
def test_scales_of_any_size(isa, chunk):
    """Each key and value has its own, which is as far from the others' as can be."""
    batch = make_batch([sequence(4, 100, 900, chunk)], cache_dtype=torch.int8)
    s = batch.sequences[0]
    for cache, rows in ((batch.k_cache, s.keys), (batch.v_cache, s.values)):
        factors = torch.logspace(-20, 0, len(s.live_positions()))
        rows *= factors[:, None, None]
        for position, factor in zip(s.live_positions(), factors.tolist(), strict=True):
            block = batch.block_table[0, s.window.column(position // 16, s.ring_blocks(16), 16)]
            scale = cache[block, :, position % 16, -4:]
            scale.copy_((scale.contiguous().view(torch.float32) * factor).view(torch.int8))
    batch.check()


@pytest.mark.parametrize("with_sink_query", [True, False])
@pytest.mark.parametrize("cache_dtype", [None, torch.int8])
def test_alibi(isa, cache_dtype, with_sink_query):
    make_batch(
        mixed(), with_alibi=True, with_sink_query=with_sink_query, cache_dtype=cache_dtype
    ).check()


@pytest.mark.parametrize("dtype, cache_dtype", KINDS)
@pytest.mark.parametrize("softcap", [0.05, 1.0, 50.0])
def test_softcap(isa, softcap, dtype, cache_dtype):
    batch = make_batch(mixed(), softcap=softcap, dtype=dtype, cache_dtype=cache_dtype)
    # Sharpens the scores, so that some lie far beyond every cap.
    batch.scale = 4.0
    batch.check()


def test_softcap_takes_any_score(isa):
    batch = make_batch(mixed(), softcap=30.0)
    batch.query.mul_(1e18)
    batch.k_cache.mul_(1e18)
    for s in batch.sequences:
        s.keys *= 1e18
    batch.check()


@pytest.mark.parametrize("cache_dtype", [None, torch.int8])
def test_what_a_local_window_hides_is_nan(cache_dtype):
    """The other tests here would notice a read outside of it."""
    batch = make_batch([sequence(4, 100, 900, 1)], local_window=102, cache_dtype=cache_dtype)
    batch.check()
    batch.local_window = 103
    assert ops.paged_attention(*batch.arguments()).isnan().all()


# Within the window, its size, reaching some sinks, just all of them, and more than everything.
@pytest.mark.parametrize("local_window", [1, 17, 60, 63, 102, 104, 300, 2**40])
@pytest.mark.parametrize("num_kv_heads, group", [(2, 3), (1, 71)])
def test_local_window(isa, local_window, num_kv_heads, group):
    batch = make_batch(
        mixed(), num_kv_heads=num_kv_heads, group=group, local_window=local_window, block_size=4
    )
    batch.check()


def test_wide_local_window_changes_nothing(isa):
    plain = make_batch(mixed(), dtype=torch.bfloat16)
    local = make_batch(mixed(), dtype=torch.bfloat16, local_window=130)
    assert torch.equal(plain.check(), local.check())


@pytest.mark.parametrize("seq_len", [1, 3, 4, 20, 43, 44, 45, 46, 100])
@pytest.mark.parametrize("local_window", [39, 40, 41, 42, 43, 44])
def test_sinks_leave_a_local_window_one_by_one(isa, local_window, seq_len):
    sequences = [sequence(4, 40, seq_len, 1), sequence(4, 40, seq_len, seq_len)]
    make_batch(sequences, local_window=local_window, block_size=2, with_alibi=True).check()


@pytest.mark.parametrize("chunk", [1, 3, 130])
@pytest.mark.parametrize("local_window", [600, 1702])
def test_local_windows_are_split_and_merged(isa, chunk, local_window):
    sequences = [sequence(4, 1700, 100_000, chunk), sequence(0, None, 1900, chunk)]
    make_batch(sequences, num_kv_heads=1, softcap=5.0, local_window=local_window).check()


@pytest.mark.parametrize("chunk", [1, 3, 130])
@pytest.mark.parametrize("cache_dtype", [None, torch.int8])
def test_keys_are_split_and_merged(isa, cache_dtype, chunk):
    sequences = [sequence(4, 1700, 100_000, chunk), sequence(0, None, 1300, chunk)]
    make_batch(sequences, num_kv_heads=1, with_alibi=True, cache_dtype=cache_dtype).check()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("block_size", [1, 5, 16, 64])
@pytest.mark.parametrize("num_kv_heads, group", [(2, 3), (1, 71)])
def test_floor(isa, num_kv_heads, group, block_size, dtype):
    make_batch(
        floored(), num_kv_heads=num_kv_heads, group=group, block_size=block_size, dtype=dtype
    ).check()


# Reaching a few of the window, some of the sinks, and more than everything.
@pytest.mark.parametrize("local_window", [None, 1, 9, 20, 31, 50, 300])
@pytest.mark.parametrize("layer", [{"with_alibi": True}, {"softcap": 1.0}])
def test_floor_with_features(isa, layer, local_window):
    make_batch(floored(), local_window=local_window, **layer).check()


@pytest.mark.parametrize("chunk", [1, 3, 130])
@pytest.mark.parametrize("floor", [98_999, 99_003, 99_870])
def test_what_a_floor_leaves_is_split_and_merged(isa, chunk, floor):
    sequences = [sequence(4, 1700, 100_000, chunk, 0, floor)]
    make_batch(sequences, num_kv_heads=1, with_alibi=True).check()


@pytest.mark.parametrize("floor, below", [(890, 889), (10, 9)])
def test_what_lies_below_a_floor_is_nan(floor, below):
    """The other tests here would notice a read of it, in the block that the floor cuts too."""
    arguments = list(make_batch([sequence(4, 100, floor + 2, 1, 0, floor)]).arguments())
    assert ops.paged_attention(*arguments).isfinite().all()
    arguments[4] = arguments[4]._replace(window_floor=torch.tensor([below]))
    assert ops.paged_attention(*arguments).isnan().all()


@pytest.mark.parametrize("chunk, floor", [(1, 901), (20, 4), (20, 882)])
def test_a_floor_outside_the_window_changes_nothing(isa, chunk, floor):
    plain = make_batch([sequence(4, 100, 1001, chunk)], with_alibi=True)
    floored = make_batch([sequence(4, 100, 1001, chunk, 0, floor)], with_alibi=True)
    assert torch.equal(plain.check(), floored.check())


def test_fewer_columns_do_above_a_floor():
    make_batch([sequence(4, 20, 90, 3, -2, 87)]).check()


@pytest.mark.parametrize("seq_len", [2**31 - 1, 2**31 + 5, 2**40])
def test_positions_beyond_int32(isa, seq_len):
    sequences = [sequence(4, 40, seq_len, 1), sequence(4, 40, seq_len, 20)]
    sequences += [sequence(4, 40, seq_len, 3, 0, seq_len - 9)]
    make_batch(sequences, with_alibi=True).check()


def test_large_scores_do_not_overflow(isa):
    batch = make_batch(mixed())
    batch.query.mul_(100)
    out = ops.paged_attention(*batch.arguments())
    assert out.isfinite().all()


@pytest.mark.parametrize(
    "layer", [{}, {"softcap": 20.0, "local_window": 1502}, {"cache_dtype": torch.int8}]
)
def test_result_does_not_depend_on_the_rest_of_the_batch(isa, layer):
    alone = make_batch([sequence(4, 1500, 9000, 1)], dtype=torch.bfloat16, **layer)
    query, sink_query, k_cache, v_cache, batch, scoring = alone.arguments()
    expected = ops.paged_attention(query, sink_query, k_cache, v_cache, batch, scoring)
    repeated = ops.BatchTensors(*(x.repeat(3, *[1] * (x.dim() - 1)) for x in batch))
    batched = ops.paged_attention(
        query.repeat(3, 1, 1),
        sink_query.repeat(3, 1, 1),
        k_cache,
        v_cache,
        repeated._replace(query_start_loc=torch.arange(4, dtype=torch.int32)),
        scoring,
    )
    assert (batched == expected).all()


@pytest.mark.parametrize("cache_dtype", [None, torch.int8])
def test_threads_do_not_change_the_result(cache_dtype):
    batch = make_batch(mixed() + [sequence(4, 1500, 9000, 1)], cache_dtype=cache_dtype)
    expected = ops.paged_attention(*batch.arguments())
    for threads in (2, 5):
        torch.set_num_threads(threads)
        for _ in range(5):
            assert torch.equal(ops.paged_attention(*batch.arguments()), expected)


def computed_in_pieces(batch: Batch, pieces: list[list[int]]) -> torch.Tensor:
    """The op's results of a batch whose chunks come in one call for each of their pieces.

    Args:
        pieces: of each sequence, the lengths that its chunk is cut into.
    """
    query, sink_query, k_cache, v_cache, tensors, scoring = batch.arguments()
    starts = tensors.query_start_loc.tolist()
    out = torch.empty_like(query)
    for index, lengths in enumerate(pieces):
        one = [field[index : index + 1] for field in tensors[4:]]
        seq_len, token = batch.sequences[index].seq_len - sum(lengths), starts[index]
        for length in lengths:
            rows = slice(token, token + length)
            seq_len, token = seq_len + length, token + length
            piece = ops.BatchTensors(*(field[rows] for field in tensors[:4]), *one)._replace(
                query_start_loc=torch.tensor([0, length], dtype=torch.int32),
                seq_lens=torch.tensor([seq_len]),
            )
            sinks = None if sink_query is None else sink_query[rows]
            out[rows] = ops.paged_attention(query[rows], sinks, k_cache, v_cache, piece, scoring)
    return out


# Of layers, and of chunks whose keys begin, end and are cut at places of every kind.
LAYERS = [
    *({"dtype": dtype, "cache_dtype": cache_dtype} for dtype, cache_dtype in KINDS),
    {"with_alibi": True},
    {"softcap": 5.0, "local_window": 300},
    {"num_kv_heads": 1, "group": 9, "dtype": torch.bfloat16, "head_dim": 40},
    {"num_kv_heads": 3, "group": 1, "dtype": torch.bfloat16, "head_dim": 128},
]
CHUNKS = [
    (4, 1500, 9001, 150),
    (4, 1500, 130, 130),
    (700, 90, 900, 130),
    (0, None, 1100, 77),
    (20, 60, 5000, 45, 1, 4955),
    (3, 1, 50, 3),
]


@pytest.mark.parametrize("layer", LAYERS)
def test_how_a_chunk_is_cut_changes_no_bit(isa, layer):
    batch = make_batch([sequence(*args) for args in CHUNKS], **layer)
    whole = ops.paged_attention(*batch.arguments())
    for longest in (1, 2, 3, 31, 64):
        pieces = [
            [min(longest, s.chunk - first) for first in range(0, s.chunk, longest)]
            for s in batch.sequences
        ]
        assert torch.equal(computed_in_pieces(batch, pieces), whole)


def test_empty_batch():
    batch = make_batch([sequence(4, 10, 5, 0)])
    assert ops.paged_attention(*batch.arguments()).shape == batch.query.shape


@st.composite
def sequences(draw):
    sinks = draw(st.integers(0, 40))
    window = draw(st.one_of(st.none(), st.integers(1, 200)))
    deepest = 300 if window is None else 4_000_100
    chunk = draw(st.one_of(st.just(1), st.integers(0, 70)))
    nearby = st.integers(max(chunk, 1), max(chunk, 1) + 300)
    seq_len = draw(st.one_of(nearby, st.integers(max(chunk, 1), deepest)))
    first_query, floor = seq_len - chunk, 0
    if window is not None and first_query >= max(sinks, 1):
        least = max(sinks, 1, first_query - window - 5)
        floor = draw(st.one_of(st.just(0), st.integers(least, first_query)))
    return sequence(sinks, window, seq_len, chunk, draw(st.integers(0, 2)), floor)


@settings(
    max_examples=120,
    derandomize=True,
)
@given(data=st.data())
def test_random_batches(isa, data):
    softcap = data.draw(st.one_of(st.none(), st.floats(0.1, 60)))
    make_batch(
        data.draw(st.lists(sequences(), min_size=1, max_size=4)),
        num_kv_heads=data.draw(st.integers(1, 3)),
        group=data.draw(st.integers(1, 8)),
        head_dim=data.draw(st.sampled_from([16, 32, 40, 64, 80, 128])),
        block_size=data.draw(st.sampled_from([1, 4, 5, 8, 16, 32])),
        dtype=data.draw(st.sampled_from(DTYPES)),
        cache_dtype=data.draw(st.sampled_from([None, torch.int8])),
        with_sink_query=data.draw(st.booleans()),
        with_alibi=softcap is None and data.draw(st.booleans()),
        softcap=softcap,
        local_window=data.draw(st.one_of(st.none(), st.integers(1, 260))),
        seed=data.draw(st.integers(0, 99)),
    ).check()
