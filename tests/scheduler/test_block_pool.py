"""Which block is reused first, and how many fresh blocks sharing owes."""

from __future__ import annotations

import pytest

from paged_stream.scheduler.block_pool import BlockPool


def hold(pool: BlockPool, block_id: int, overwriters: int, readers: int) -> None:
    for _ in range(overwriters):
        pool.share(block_id, overwrites=True)
    for _ in range(readers):
        pool.share(block_id, overwrites=False)


def test_forgotten_content_is_reused_before_untouched_blocks_and_those_before_hashed_ones():
    pool = BlockPool(6)
    taken = [pool.allocate(overwrites=True) for _ in range(4)]
    assert taken == [0, 1, 2, 3]
    for block_id in (1, 3):
        pool.remember(block_id, b"%d" % block_id)
    for block_id in (3, 0, 2, 1):
        pool.release(block_id, overwrites=True)
    # Freed last, freed before it; untouched; hashed and freed first, hashed and freed later.
    assert [pool.allocate(overwrites=True) for _ in range(6)] == [2, 0, 4, 5, 3, 1]


def test_a_freed_block_is_found_until_it_is_reused():
    pool = BlockPool(1)
    pool.remember(pool.allocate(overwrites=True), b"content")
    pool.release(0, overwrites=True)
    assert pool.find(b"content") == 0 and pool.num_free == 1
    pool.allocate(overwrites=True)
    assert pool.find(b"content") is None


def test_a_free_block_that_is_shared_is_taken_out_of_the_free_ones():
    pool = BlockPool(2)
    pool.remember(pool.allocate(overwrites=True), b"content")
    pool.release(0, overwrites=True)
    pool.share(0, overwrites=False)
    assert pool.num_free == 1 and pool.find(b"content") == 0
    assert pool.allocate(overwrites=True) == 1


def test_the_first_of_two_blocks_with_the_same_content_stays_in_the_index():
    pool = BlockPool(2)
    for _ in range(2):
        pool.remember(pool.allocate(overwrites=True), b"content")
    pool.forget(1)
    assert pool.find(b"content") == 0
    pool.forget(0)
    assert pool.find(b"content") is None


@pytest.mark.parametrize(
    ("overwriters", "readers", "owed"),
    [
        (1, 0, 0),  # its own
        (0, 1, 0),
        (0, 3, 0),  # nobody ever writes
        (2, 0, 1),  # the last may keep it
        (3, 0, 2),
        (1, 1, 1),  # readers keep it
        (2, 3, 2),
    ],
)
def test_num_owed_is_what_it_takes_until_nobody_overwrites_what_others_hold(
    overwriters, readers, owed
):
    pool = BlockPool(3)
    hold(pool, 0, overwriters, readers)
    hold(pool, 2, 2, 0)  # another block counts for itself
    assert pool.num_owed == owed + 1
    for _ in range(overwriters):
        pool.release(0, overwrites=True)
    assert pool.num_owed == 1
    pool.check_integrity([(0, False)] * readers + [(2, True)] * 2)


def test_freeing_twice_is_noticed():
    pool = BlockPool(1)
    pool.release(pool.allocate(overwrites=True), overwrites=True)
    with pytest.raises(AssertionError, match="block 0 freed twice"):
        pool.release(0, overwrites=True)
