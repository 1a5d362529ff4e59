"""How much a table may take at once, and what it gives back."""

from __future__ import annotations

import pytest

from paged_stream.scheduler.kv_cache_manager import KVCacheManager
from paged_stream.scheduler.sink_window import SinkWindow
from tests.scheduler.builders import SMALL


@pytest.mark.parametrize(
    ("num_computed", "chunk"),
    [(0, 24), (10, 14), (20, 4), (22, 2), (23, 2), (100, 2)],
)
def test_a_chunk_fills_the_row_or_else_what_the_ring_has_room_for(num_computed, chunk):
    kv = KVCacheManager(num_blocks=6, block_size=4)
    assert kv.admit(0, SMALL, None, chunk=99) == 0
    assert kv.fit(0, num_computed, 99, may_grow=True) == chunk


def test_a_short_prompt_needs_no_larger_ring():
    kv = KVCacheManager(num_blocks=64, block_size=4)
    assert kv.admit(0, SMALL, None, chunk=24) == 0
    assert kv.num_unreserved_blocks == 64 - 6
    assert kv.admit(1, SMALL, None, chunk=25) == 0
    assert kv.num_unreserved_blocks == 64 - 6 - 7


def test_a_row_that_is_all_sinks_has_a_ring_of_one():
    """A kernel takes columns modulo the ring."""
    kv = KVCacheManager(num_blocks=64, block_size=4)
    assert kv.min_blocks(SinkWindow(40, 4), 8) == 2 + 1
    assert kv.admit(0, SinkWindow(40, 4), 8, chunk=8) == 0
    assert (kv[0].num_sink_blocks, kv[0].ring_blocks) == (2, 1)


def test_a_bounded_sequence_reserves_no_more_than_it_can_touch():
    kv = KVCacheManager(num_blocks=64, block_size=4)
    assert kv.admit(0, SMALL, 9, chunk=9) == 0
    assert kv.num_unreserved_blocks == 64 - 3


def test_a_sequence_that_does_not_fit_changes_nothing():
    kv = KVCacheManager(num_blocks=11, block_size=4)
    assert kv.admit(0, SMALL, None, chunk=1) == 0
    assert kv.admit(1, SMALL, None, chunk=1) is None
    assert kv.num_unreserved_blocks == 5 and 1 not in kv
    kv.check_integrity()
    kv.free(0)
    assert kv.num_unreserved_blocks == 11


def test_of_a_ring_that_shrinks_the_end_of_the_chain_is_reused_first():
    kv = KVCacheManager(num_blocks=12, block_size=4)
    assert kv.admit(0, SinkWindow(0, 5), None, chunk=40) == 0
    kv.allocate(0, 40)
    for block_id in range(10):
        kv.pool.remember(block_id, b"%d" % block_id)
    assert kv.fit(0, 40, 1, may_grow=False) == 1
    assert kv[0].held == [9], "all that the next token sees"
    kv.check_integrity()
    reused = [kv.pool.allocate(overwrites=True) for _ in range(11)]
    assert reused == [10, 11, *reversed(range(9))]


def test_steps_do_not_end_at_a_column_without_a_block():
    kv = KVCacheManager(num_blocks=8, block_size=4)
    assert kv.admit(0, SMALL, None, chunk=1) == 0
    kv.allocate(0, 4)
    for _ in range(2):  # others hold the last block
        kv.pool.share(7, overwrites=False)
    assert kv[0].row[1] == -1
    assert kv.max_decode_steps(0, 3, 5) == 5


def test_what_is_written_again_after_a_rewind_is_written_to_blocks_of_its_own():
    kv = KVCacheManager(num_blocks=64, block_size=4)
    assert kv.admit(0, SMALL, None, chunk=1) == 0
    kv.allocate(0, 16)
    assert kv.fork(0, 1, 16)
    kv.truncate(0, 8)
    kv.allocate(0, 16)
    assert kv[0].row[:2] == kv[1].row[:2]
    assert not set(kv[0].row[2:4]) & set(kv[1].row[2:4])


@pytest.mark.parametrize(("num_blocks", "fits"), [(10, False), (11, True)])
def test_shared_blocks_that_will_be_overwritten_are_reserved_for(num_blocks, fits):
    kv = KVCacheManager(num_blocks, block_size=4)
    hashes = [b"0", b"1", b"2", b"3"]
    assert kv.admit(0, SMALL, None, chunk=1) == 0
    kv.allocate(0, 20)
    for block_id, block_hash in zip(kv[0].row, hashes, strict=False):
        kv.pool.remember(block_id, block_hash)
    # All but the pure sink block cost as much as blocks of its own.
    assert kv.num_missing(SMALL, None, hashes) == 5 - (num_blocks - 6)
    assert kv.admit(1, SMALL, None, 1, hashes) == (4 if fits else None)
    kv.check_integrity()
