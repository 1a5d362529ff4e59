"""How much a table may take at once, and what it gives back."""

from __future__ import annotations

import pytest

from paged_stream.scheduler.kv_cache_manager import KVCacheManager, PrefixHit
from tests.scheduler.builders import SMALL


@pytest.mark.parametrize(
    ("num_computed", "chunk"),
    [(0, 24), (10, 14), (20, 4), (22, 2), (23, 2), (100, 2)],
)
def test_a_chunk_fills_the_row_or_else_what_the_ring_has_room_for(num_computed, chunk):
    kv = KVCacheManager(num_blocks=6, block_size=4)
    assert kv.admit(0, SMALL, None, chunk=99)
    assert kv.fit(0, num_computed, 99, may_grow=True) == chunk


def test_a_short_prompt_needs_no_larger_ring():
    kv = KVCacheManager(num_blocks=64, block_size=4)
    assert kv.admit(0, SMALL, None, chunk=24)
    assert kv.num_unreserved_blocks == 64 - 6
    assert kv.admit(1, SMALL, None, chunk=25)
    assert kv.num_unreserved_blocks == 64 - 6 - 7


def test_a_bounded_sequence_reserves_no_more_than_it_can_touch():
    kv = KVCacheManager(num_blocks=64, block_size=4)
    assert kv.admit(0, SMALL, 9, chunk=9)
    assert kv.num_unreserved_blocks == 64 - 3


def test_a_sequence_that_does_not_fit_changes_nothing():
    kv = KVCacheManager(num_blocks=11, block_size=4)
    assert kv.admit(0, SMALL, None, chunk=1)
    assert not kv.admit(1, SMALL, None, chunk=1)
    assert kv.num_unreserved_blocks == 5 and 1 not in kv
    kv.check_integrity()
    kv.free(0)
    assert kv.num_unreserved_blocks == 11


@pytest.mark.parametrize(("num_blocks", "fits"), [(10, False), (11, True)])
def test_shared_blocks_that_will_be_overwritten_are_reserved_for(num_blocks, fits):
    kv = KVCacheManager(num_blocks, block_size=4)
    assert kv.admit(0, SMALL, None, chunk=1)
    kv.allocate(0, 20)
    hit = PrefixHit(4, dict(enumerate(kv[0].row[:4])))
    # All but the pure sink block cost as much as blocks of its own.
    assert kv.admit(1, SMALL, None, 1, hit) == fits
    kv.check_integrity()
