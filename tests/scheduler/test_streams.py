"""Streams between turns: forks, edits, parking, pauses."""

from __future__ import annotations

import itertools

import pytest

from paged_stream.scheduler.output import CopyBlock, DropParked, ParkTokens, RestoreTokens
from paged_stream.scheduler.sequence import SequenceStatus
from paged_stream.scheduler.sink_window import SinkWindow
from tests.scheduler.builders import (
    SMALL,
    STOP,
    add,
    chunks,
    generate,
    make_scheduler,
    run,
    step,
    stream,
)


def is_parked(scheduler):
    return [seq_id for seq_id, sequence in scheduler.sequences.items() if sequence.is_parked]


# Forks


def test_a_fork_shares_full_blocks_and_copies_the_one_that_is_partly_filled():
    scheduler = make_scheduler()
    stream(scheduler, 0, range(19))
    scheduler.fork(0, 1)
    parent, child = scheduler.kv[0].row, scheduler.kv[1].row
    assert child[:4] == parent[:4] and child[4] != parent[4]
    assert scheduler.take_operations() == [CopyBlock(parent[4], child[4])]


def test_a_fork_at_the_end_of_a_block_copies_nothing():
    scheduler = make_scheduler()
    stream(scheduler, 0, range(21))
    scheduler.fork(0, 1)
    assert scheduler.kv[0].held == scheduler.kv[1].held
    assert scheduler.take_operations() == []


def test_a_fork_without_room_is_a_parked_copy():
    scheduler = make_scheduler(num_blocks=8)
    stream(scheduler, 0, range(30))
    slots = scheduler.kept_slots(0)
    scheduler.fork(0, 1)
    assert is_parked(scheduler) == [1]
    assert scheduler.take_operations() == [ParkTokens(1, slots)]
    generate(scheduler, 1, max_tokens=2)
    run(scheduler)
    assert is_parked(scheduler) == [0]


def test_a_fork_after_a_rewind_shares_what_is_left():
    scheduler = make_scheduler()
    stream(scheduler, 0, range(101))
    scheduler.rewind(0, 92)  # of its window, older blocks are gone
    scheduler.fork(0, 1)
    scheduler.check_integrity()
    generate(scheduler, 1, max_tokens=20)
    run(scheduler)
    assert scheduler.sequences[1].num_tokens == 112


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_parent_and_forks_may_be_closed_in_any_order(order):
    scheduler = make_scheduler()
    stream(scheduler, 0, range(31))
    scheduler.fork(0, 1)
    scheduler.fork(1, 2)
    for seq_id in range(3):
        generate(scheduler, seq_id, max_tokens=3)
    for seq_id in order:
        step(scheduler)
        scheduler.close(seq_id)
        scheduler.check_integrity()
    assert scheduler.kv.pool.num_free == scheduler.kv.num_unreserved_blocks == 64


# Parking


def test_the_least_recently_used_stream_is_parked_first():
    scheduler = make_scheduler(num_blocks=18)
    for seq_id in range(3):
        stream(scheduler, seq_id, [seq_id] * 30)
    generate(scheduler, 0, max_tokens=1)
    run(scheduler)
    assert list(scheduler.idle_streams()) == [1, 2, 0]
    stream(scheduler, 3, [3])
    assert is_parked(scheduler) == []  # it has nothing to compute yet
    generate(scheduler, 3, max_tokens=1)
    run(scheduler)
    assert is_parked(scheduler) == [1]


def test_a_parked_stream_comes_back_when_its_turn_starts():
    scheduler = make_scheduler(num_blocks=7)
    stream(scheduler, 0, range(30))
    num_kept = len(scheduler.kept_slots(0))
    stream(scheduler, 1, [1] * 30)
    scheduler.take_operations()
    scheduler.append(0, [5])
    output, _ = step(scheduler)
    assert chunks(output) == {0: 1} and output.sequences[0].num_computed_tokens == 29
    parked, restored = scheduler.take_operations()
    assert (parked.key, restored.key) == (1, 0) and len(restored.slots) == num_kept == 4 + 15


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
    assert is_parked(scheduler) == []


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
    assert is_parked(scheduler) == []


def test_the_blocks_of_a_paused_sequence_can_be_parked():
    scheduler = make_scheduler(num_blocks=7)
    stream(scheduler, 0, range(30))
    generate(scheduler, 0, max_tokens=9)
    step(scheduler)
    add(scheduler, 1, 3, max_tokens=2)
    assert chunks(step(scheduler)[0]) == {0: 1}
    assert chunks(step(scheduler, paused={0})[0]) == {1: 3}
    assert is_parked(scheduler) == [0]
    run(scheduler)
    assert scheduler.sequences[0].num_tokens == 30 + 9


# Turns


def test_what_is_appended_while_generating_is_computed_after_the_turn():
    scheduler = make_scheduler()
    sequence = stream(scheduler, 0, range(10))
    generate(scheduler, 0, max_tokens=9)
    step(scheduler)
    scheduler.append(0, [21, 22, 23])
    assert sequence.num_tokens == 11
    _, (update,) = step(scheduler, token_id=STOP)
    assert update.finish_reason == "stop" and sequence.status is SequenceStatus.WAITING
    assert list(sequence.last_token_ids(5)) == [8, STOP, 21, 22, 23]
    assert [chunks(output) for output in run(scheduler)] == [{0: 3}]
    assert sequence.num_computed_tokens == sequence.num_tokens - 1


def test_generating_after_a_rewind_reads_the_last_token_again():
    scheduler = make_scheduler()
    sequence = stream(scheduler, 0, range(30))
    scheduler.rewind(0, 25)
    generate(scheduler, 0, max_tokens=1)
    (scheduled,) = step(scheduler)[0].sequences
    assert list(scheduled.token_ids) == [24] and scheduled.num_computed_tokens == 24
    assert scheduled.samples and sequence.num_tokens == 26


def test_the_token_read_again_is_not_written_into_a_shared_block():
    scheduler = make_scheduler()
    stream(scheduler, 0, range(25))
    scheduler.rewind(0, 24)
    scheduler.fork(0, 1)
    generate(scheduler, 1, max_tokens=1)
    (copy,) = scheduler.take_operations()
    (scheduled,) = step(scheduler)[0].sequences
    assert copy.source in scheduler.kv[0].held and copy.destination in scheduled.block_row
    assert copy.destination not in scheduler.kv[0].held


def test_nothing_follows_from_the_beginning_of_the_window():
    scheduler = make_scheduler()
    sequence = stream(scheduler, 0, range(30))
    scheduler.rewind(0, sequence.first_kept + 1)
    assert sequence.has_next
    scheduler.rewind(0, sequence.first_kept)
    assert not sequence.has_next
    scheduler.append(0, [5])
    assert sequence.has_next


def test_a_stream_without_tokens_has_no_next():
    assert not make_scheduler().open(0, SMALL, is_stream=True).has_next


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
