"""How much a table may take at once, and what it gives back."""

from __future__ import annotations

import pytest

from paged_stream.scheduler.kv_cache_manager import KVCacheManager
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


@pytest.mark.parametrize(("num_blocks", "fits"), [(10, False), (11, True)])
def test_shared_blocks_that_will_be_overwritten_are_reserved_for(num_blocks, fits):
    kv = KVCacheManager(num_blocks, block_size=4)
    hashes = [b"0", b"1", b"2", b"3"]
    assert kv.admit(0, SMALL, None, chunk=1) == 0
    kv.allocate(0, 20)
    for block_id, block_hash in zip(kv[0].row, hashes, strict=False):
        kv.pool.remember(block_id, block_hash)
    # All but the pure sink block cost as much as blocks of its own.
    assert kv.num_needed(SMALL, None, hashes) == 5
    assert kv.admit(1, SMALL, None, 1, hashes) == (4 if fits else None)
    kv.check_integrity()
