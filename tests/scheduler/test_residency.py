"""Who leaves the cache for whom, what is shared when it comes back, and pauses."""

from __future__ import annotations

import pytest

from paged_stream.scheduler.output import CopyBlock, DropParked, ParkTokens, RestoreTokens
from paged_stream.scheduler.sink_window import SinkWindow
from tests.scheduler.builders import (
    SMALL,
    add,
    chunks,
    generate,
    make_scheduler,
    parked,
    run,
    step,
    stream,
)


def test_the_least_recently_used_stream_is_parked_first():
    scheduler = make_scheduler(num_blocks=18)
    for seq_id in range(3):
        stream(scheduler, seq_id, [seq_id] * 30)
    generate(scheduler, 0, max_tokens=1)
    run(scheduler)
    assert list(scheduler.idle_streams()) == [1, 2, 0]
    stream(scheduler, 3, [3])
    assert parked(scheduler) == []  # it has nothing to compute yet
    generate(scheduler, 3, max_tokens=1)
    run(scheduler)
    assert parked(scheduler) == [1]


def test_a_parked_stream_comes_back_when_its_turn_starts():
    scheduler = make_scheduler(num_blocks=7)
    stream(scheduler, 0, range(30))
    num_kept = len(scheduler.kept_slots(0))
    stream(scheduler, 1, [1] * 30)
    scheduler.take_operations()
    scheduler.append(0, [5])
    output, _ = step(scheduler)
    assert chunks(output) == {0: 1} and output.sequences[0].num_computed_tokens == 29
    leaving, restored = scheduler.take_operations()
    assert (leaving.key, restored.key) == (1, 0) and len(restored.slots) == num_kept == 4 + 15


def test_operations_are_taken_once_and_in_order():
    scheduler = make_scheduler()
    for seq_id in range(2):
        stream(scheduler, seq_id, [seq_id] * 19)
    scheduler.park(0)
    scheduler.make_resident(0)
    scheduler.fork(0, 2)
    scheduler.park(1)
    scheduler.close(1)
    kinds = [type(operation) for operation in scheduler.take_operations()]
    assert kinds == [ParkTokens, RestoreTokens, CopyBlock, ParkTokens, DropParked]
    assert scheduler.take_operations() == []


def test_a_stream_that_has_computed_nothing_is_parked_without_a_trace():
    scheduler = make_scheduler()
    stream(scheduler, 0, [1])
    scheduler.park(0)
    assert not scheduler.take_operations() and not len(scheduler.kept_slots(0))


def test_make_resident_needs_room_beside_what_runs():
    scheduler = make_scheduler(num_blocks=7)
    stream(scheduler, 0, range(30))
    add(scheduler, 1, 30)
    step(scheduler)
    for edit in (
        lambda: scheduler.make_resident(0),
        lambda: scheduler.fork(0, 2),
        lambda: scheduler.rewind(0, 28),
        lambda: scheduler.cut(0, 20, 22),
    ):
        with pytest.raises(RuntimeError, match="the cache has no room for this stream"):
            edit()
    scheduler.check_integrity()
    run(scheduler)
    scheduler.make_resident(0)
    assert parked(scheduler) == []


def test_nobody_is_parked_in_vain():
    """What has to wait for a running sequence does not drive idle streams out meanwhile."""
    scheduler = make_scheduler(num_blocks=16)
    stream(scheduler, 0, range(4))  # idle, with a row of 6 blocks
    scheduler.open(1, SMALL, is_stream=True)
    scheduler.append(1, range(100, 120))
    generate(scheduler, 1, max_tokens=None)
    step(scheduler)
    add(scheduler, 2, 40, window=SinkWindow(4, 36))  # 11 blocks: more than parking can free
    step(scheduler)
    assert list(scheduler.idle_streams()) == [0]


EDITS = {
    "make_resident": lambda scheduler, paused: scheduler.make_resident(0, paused),
    "fork": lambda scheduler, paused: scheduler.fork(0, 2, paused),
    "rewind": lambda scheduler, paused: scheduler.rewind(0, 28, paused),
    "cut": lambda scheduler, paused: scheduler.cut(0, 20, 22, paused),
}


@pytest.mark.parametrize("edit", EDITS)
def test_what_waits_for_its_reader_makes_room_for_an_edit(edit):
    scheduler = make_scheduler(num_blocks=7)
    stream(scheduler, 0, range(30))
    stream(scheduler, 1, [1] * 30)
    generate(scheduler, 1, max_tokens=9)
    step(scheduler)
    with pytest.raises(RuntimeError, match="the cache has no room"):
        EDITS[edit](scheduler, {0})
    assert (parked(scheduler), scheduler.num_running) == ([0], 1), "nobody left in vain"
    EDITS[edit](scheduler, {1})
    scheduler.check_integrity()
    assert 1 in parked(scheduler) and 0 not in parked(scheduler)
    run(scheduler)
    assert scheduler.sequences[1].num_tokens == 30 + 9


def test_what_waits_for_its_reader_keeps_its_place_if_there_is_room_without():
    scheduler = make_scheduler(num_blocks=18, max_num_seqs=2, max_num_batched_tokens=2)
    for seq_id in range(4):
        stream(scheduler, seq_id, [seq_id] * 30)
    assert parked(scheduler) == [0]
    generate(scheduler, 1, max_tokens=9)
    step(scheduler)
    scheduler.make_resident(0, {1})
    assert (parked(scheduler), scheduler.num_running) == ([2], 1)


# Pinned blocks

PINNED = SinkWindow(9, 4)  # two pure sink blocks, a mixed one and a ring of two


def pinned_streams(scheduler, num_streams):
    for seq_id in range(num_streams):
        stream(scheduler, seq_id, [*range(100, 109), *[seq_id] * 10], PINNED)


def test_a_pin_is_shared_again_after_parking():
    scheduler = make_scheduler()
    pinned_streams(scheduler, 2)
    pin = scheduler.kv[1].row[:2].tolist()
    scheduler.park(0)
    scheduler.take_operations()
    scheduler.make_resident(0)
    assert scheduler.kv[0].row[:2].tolist() == pin
    (restored,) = scheduler.take_operations()
    assert restored.slots[:8].tolist() == [-1] * 8, "these are in the cache"
    assert list(restored.slots[8:]) == list(scheduler.kept_slots(0)[8:])
    assert [scheduler.kv.pool.num_refs(block_id) for block_id in pin] == [2, 2]
    scheduler.check_integrity()


def test_the_first_that_comes_back_brings_the_pin_for_the_others():
    scheduler = make_scheduler(num_blocks=2 + 4 * 3)
    pinned_streams(scheduler, 4)
    for seq_id in range(4):
        scheduler.park(seq_id)
    for _ in range(14):  # other content, everywhere
        scheduler.kv.pool.allocate(overwrites=True)
    for block_id in range(14):
        scheduler.kv.pool.release(block_id, overwrites=True)
    scheduler.take_operations()
    for seq_id in range(4):
        scheduler.make_resident(seq_id)
    assert parked(scheduler) == []
    shared = [operation.slots.tolist().count(-1) for operation in scheduler.take_operations()]
    assert shared == [0, 8, 8, 8]


def test_a_parked_stream_waits_for_no_more_than_it_cannot_share():
    scheduler = make_scheduler(num_blocks=2 + 2 * 3, max_num_batched_tokens=64)
    pinned_streams(scheduler, 2)
    scheduler.park(0)
    generate(scheduler, 1, max_tokens=99)
    step(scheduler)
    assert scheduler.kv.num_unreserved_blocks == 3
    scheduler.append(0, [5])
    assert chunks(step(scheduler)[0]) == {1: 1, 0: 1}


def test_a_parked_beginning_of_a_pin_is_shared_as_far_as_it_was_computed():
    scheduler = make_scheduler()
    pinned_streams(scheduler, 1)
    stream(scheduler, 1, range(100, 108), PINNED)  # computes seven of the nine pinned tokens
    scheduler.park(1)
    scheduler.take_operations()
    scheduler.make_resident(1)
    assert scheduler.kv[1].row[0] == scheduler.kv[0].row[0]
    assert scheduler.kv[1].row[1] != scheduler.kv[0].row[1]
    (restored,) = scheduler.take_operations()
    assert restored.slots.tolist()[:4] == [-1] * 4
    assert restored.slots[4:] == scheduler.kv.slots(1, 4, 7)


def test_what_a_file_brought_is_not_shared_out():
    scheduler = make_scheduler()
    pinned_streams(scheduler, 1)
    state = scheduler.sequences[0].state()
    scheduler.close(0)
    for block_id in range(64):
        scheduler.kv.pool.forget(block_id)
    scheduler.restore(1, state)
    scheduler.make_resident(1)
    scheduler.fork(1, 2)
    for seq_id in (1, 2):
        scheduler.park(seq_id)
        scheduler.make_resident(seq_id)
    assert not scheduler.kv.pool._index
    # But it shares what was computed here.
    pinned_streams(scheduler, 1)
    scheduler.restore(3, state)
    scheduler.make_resident(3)
    assert scheduler.kv[3].row[:2] == scheduler.kv[0].row[:2]


def test_nothing_is_shared_after_parking_when_prefix_caching_is_off():
    scheduler = make_scheduler(enable_prefix_caching=False)
    pinned_streams(scheduler, 2)
    for seq_id in range(2):
        scheduler.park(seq_id)
    for seq_id in range(2):
        scheduler.make_resident(seq_id)
    assert not set(scheduler.kv[0].held) & set(scheduler.kv[1].held)


# Pauses


def test_a_paused_sequence_keeps_its_place_while_nobody_waits():
    scheduler = make_scheduler(max_num_seqs=1)
    stream(scheduler, 0, range(30))
    generate(scheduler, 0, max_tokens=9)
    step(scheduler)
    assert not step(scheduler, paused={0})[0].sequences
    assert scheduler.num_running == 1


def test_a_paused_sequence_gives_its_place_to_a_waiting_one_and_goes_on_later():
    scheduler = make_scheduler(max_num_seqs=1)
    stream(scheduler, 0, range(30))
    generate(scheduler, 0, max_tokens=9)
    step(scheduler)
    add(scheduler, 1, 3, max_tokens=2)
    assert chunks(step(scheduler, paused={0})[0]) == {1: 3}
    assert chunks(step(scheduler)[0]) == {1: 1}
    assert chunks(step(scheduler)[0]) == {0: 1}
    assert parked(scheduler) == []


def test_the_blocks_of_a_paused_sequence_can_be_parked():
    scheduler = make_scheduler(num_blocks=7)
    stream(scheduler, 0, range(30))
    generate(scheduler, 0, max_tokens=9)
    step(scheduler)
    add(scheduler, 1, 3, max_tokens=2)
    assert chunks(step(scheduler)[0]) == {0: 1}
    assert chunks(step(scheduler, paused={0})[0]) == {1: 3}
    assert parked(scheduler) == [0]
    run(scheduler)
    assert scheduler.sequences[0].num_tokens == 30 + 9
