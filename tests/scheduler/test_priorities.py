"""Who gives its place and its memory to a higher priority, and goes on where it was."""

from __future__ import annotations

import pytest

from paged_stream.scheduler.output import ParkTokens, RestoreTokens
from paged_stream.scheduler.sequence import SequenceStatus
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

ROW = 6  # blocks that one sequence of SMALL needs


def endless(scheduler, seq_id, *, priority, prompt=3, window=SMALL):
    """A request that nothing ends."""
    scheduler.open(seq_id, window, priority=priority)
    scheduler.append(seq_id, [1000 + seq_id] * prompt)
    generate(scheduler, seq_id, max_tokens=None)


def running(scheduler):
    return {
        seq_id
        for seq_id, sequence in scheduler.sequences.items()
        if sequence.status is SequenceStatus.RUNNING
    }


def test_a_place_goes_to_a_higher_priority_in_the_next_step():
    scheduler = make_scheduler(max_num_seqs=2)
    for seq_id in range(2):
        endless(scheduler, seq_id, priority=1)
    assert chunks(step(scheduler)[0]) == {0: 3, 1: 3}
    add(scheduler, 2, 3, max_tokens=2, priority=0)
    assert chunks(step(scheduler)[0]) == {0: 1, 2: 3}
    assert chunks(step(scheduler)[0]) == {0: 1, 2: 1}
    assert chunks(step(scheduler)[0]) == {0: 1, 1: 1}
    assert not parked(scheduler), "there was memory for all"
    assert scheduler.num_preemptions == 1


def test_memory_goes_to_a_higher_priority_and_comes_back():
    scheduler = make_scheduler(num_blocks=2 * ROW)
    for seq_id in range(2):
        endless(scheduler, seq_id, priority=1)
    for _ in range(30):
        step(scheduler)
    scheduler.take_operations()
    add(scheduler, 2, 30, max_tokens=2)
    computed, kept = scheduler.sequences[1].num_computed_tokens, scheduler.kept_slots(1)
    step(scheduler)
    assert (running(scheduler), parked(scheduler)) == ({0, 2}, [1])
    assert scheduler.take_operations() == [ParkTokens(1, kept)]
    while 2 in scheduler.sequences:
        step(scheduler)
    output = scheduler.schedule()
    assert running(scheduler) == {0, 1}
    assert scheduler.take_operations() == [RestoreTokens(1, scheduler.kept_slots(1))]
    assert {s.seq_id: s.num_computed_tokens for s in output.sequences}[1] == computed


@pytest.mark.parametrize("limit", [{"max_num_seqs": 2}, {"num_blocks": 2 * ROW}])
def test_equals_never_leave_for_each_other(limit):
    scheduler = make_scheduler(**limit)
    for seq_id in range(3):
        endless(scheduler, seq_id, priority=1)
    for _ in range(200):
        assert chunks(step(scheduler)[0]).keys() == {0, 1}
    assert scheduler.num_preemptions == 0 and not parked(scheduler)


def test_the_lowest_and_last_leaves_first_and_all_keep_their_order():
    scheduler = make_scheduler(max_num_seqs=3, num_blocks=3 * ROW)
    for seq_id, priority in ((0, 2), (1, 3), (2, 3)):
        endless(scheduler, seq_id, priority=priority)
    step(scheduler)
    left = []
    for seq_id in (10, 11, 12):
        before = running(scheduler)
        endless(scheduler, seq_id, priority=1)
        step(scheduler)
        left += before - running(scheduler)
    assert left == [2, 1, 0]
    endless(scheduler, 3, priority=3)  # behind those that left
    back = []
    for seq_id in (10, 11, 12):
        before = running(scheduler)
        scheduler.close(seq_id)
        step(scheduler)
        back += running(scheduler) - before
    assert back == [0, 1, 2]


def test_idle_streams_leave_before_what_runs():
    scheduler = make_scheduler(num_blocks=2 * ROW)
    stream(scheduler, 0, range(30))
    endless(scheduler, 1, priority=1)
    step(scheduler)
    add(scheduler, 2, 3)
    step(scheduler)
    assert (running(scheduler), parked(scheduler)) == ({1, 2}, [0])
    assert scheduler.num_preemptions == 0


def test_what_waits_with_its_blocks_makes_room_for_a_higher_priority():
    scheduler = make_scheduler(max_num_seqs=1, num_blocks=2 * ROW)
    for seq_id, priority in ((0, 2), (1, 1)):
        endless(scheduler, seq_id, priority=priority)
        step(scheduler)
    assert running(scheduler) == {1} and not parked(scheduler)
    endless(scheduler, 2, priority=0)
    step(scheduler)
    assert (running(scheduler), parked(scheduler)) == ({2}, [0])


def test_a_prompt_goes_before_one_of_lower_priority_that_is_being_computed():
    scheduler = make_scheduler()
    add(scheduler, 0, 60, priority=1)
    assert chunks(step(scheduler)[0]) == {0: 16}
    add(scheduler, 1, 30, priority=0)
    assert chunks(step(scheduler)[0]) == {1: 16}
    assert chunks(step(scheduler)[0]) == {1: 14, 0: 2}


@pytest.mark.parametrize("chunk_size", [None, 4])
def test_a_budget_that_decodes_use_up_is_no_obstacle(chunk_size):
    size = chunk_size or 1
    scheduler = make_scheduler(
        max_num_seqs=4, max_num_batched_tokens=3 + size, chunk_size=chunk_size
    )
    for seq_id in range(4):
        endless(scheduler, seq_id, priority=1, prompt=1)
        step(scheduler)
    endless(scheduler, 4, priority=0, prompt=9)
    assert chunks(step(scheduler)[0]) == {0: 1, 1: 1, 2: 1, 4: size}


def test_a_place_is_not_taken_for_what_a_step_has_no_budget_for():
    """Equals have used it up, and whoever would leave has no part in it either."""
    scheduler = make_scheduler(max_num_seqs=2)
    add(scheduler, 0, 40, priority=1)
    step(scheduler)
    add(scheduler, 1, 40, priority=0)
    step(scheduler)
    endless(scheduler, 2, priority=0)
    assert chunks(step(scheduler)[0]) == {1: 16} and running(scheduler) == {0, 1}
    assert chunks(step(scheduler)[0]) == {1: 8, 2: 3} and running(scheduler) == {1, 2}


def test_the_tokens_of_what_leaves_go_to_what_comes():
    scheduler = make_scheduler(max_num_seqs=2)
    endless(scheduler, 0, priority=1)
    step(scheduler)
    add(scheduler, 1, 40, priority=0)
    assert chunks(step(scheduler)[0]) == {0: 1, 1: 15}
    endless(scheduler, 2, priority=0)
    assert chunks(step(scheduler)[0]) == {1: 15, 2: 1}


def test_nobody_leaves_in_vain():
    """Blocks that others hold as well do not become free."""
    window = SinkWindow(16, 4)  # four pinned blocks and a ring of two
    scheduler = make_scheduler(num_blocks=4 + 2 * 2)
    for seq_id, priority in ((0, 0), (1, 1)):
        scheduler.open(seq_id, window, priority=priority)
        scheduler.append(seq_id, range(20))
        generate(scheduler, seq_id, max_tokens=None)
        step(scheduler)
        step(scheduler)
    assert scheduler.kv[0].row[:4] == scheduler.kv[1].row[:4]
    endless(scheduler, 2, priority=0, window=window)  # parking 1 would free two blocks of six
    for _ in range(5):
        assert chunks(step(scheduler)[0]).keys() == {0, 1}
    assert not parked(scheduler)
    endless(scheduler, 3, priority=0, window=SinkWindow(0, 4))  # two blocks, but it is not next
    scheduler.close(2)
    step(scheduler)
    assert (running(scheduler), parked(scheduler)) == ({0, 3}, [1])


def test_blocks_that_only_those_hold_who_leave_become_free():
    """Siblings share all that they have computed; together they leave it."""
    scheduler = make_scheduler(num_blocks=2 * ROW)
    scheduler.open(0, SMALL, is_stream=True, priority=1)
    scheduler.append(0, range(30))
    run(scheduler)
    scheduler.fork(0, 1)
    for seq_id in range(2):
        generate(scheduler, seq_id, max_tokens=None)
    step(scheduler)
    endless(scheduler, 2, priority=0, window=SinkWindow(4, 36))  # 11 blocks
    step(scheduler)
    assert (running(scheduler), parked(scheduler)) == ({2}, [0, 1])


def test_what_is_shared_with_others_is_not_needed_again():
    window = SinkWindow(16, 4)
    scheduler = make_scheduler(num_blocks=4 + 2 * 2)
    for seq_id, priority in ((0, 0), (1, 1), (2, 0)):
        scheduler.open(seq_id, window, priority=priority)
        scheduler.append(seq_id, range(20))
        generate(scheduler, seq_id, max_tokens=None)
        step(scheduler)
        step(scheduler)
    assert (running(scheduler), parked(scheduler)) == ({0, 2}, [1])


def test_steps_that_go_together_are_no_obstacle():
    scheduler = make_scheduler(max_num_seqs=1, num_decode_steps=8)
    endless(scheduler, 0, priority=1)
    step(scheduler)
    output = scheduler.schedule()
    assert output.num_steps > 1
    endless(scheduler, 1, priority=0)
    assert scheduler.schedule_following(output) is None


def test_an_edit_makes_room_as_a_turn_does():
    scheduler = make_scheduler(num_blocks=ROW)
    stream(scheduler, 0, range(30))
    scheduler.park(0)
    endless(scheduler, 1, priority=1)
    step(scheduler)
    scheduler.rewind(0, 28)
    scheduler.check_integrity()
    assert parked(scheduler) == [1] and not running(scheduler)


def test_who_gave_its_place_before_it_computed_anything_begins_anew():
    scheduler = make_scheduler(max_num_seqs=2, num_blocks=2 * ROW, max_num_batched_tokens=2)
    for seq_id in range(2):
        endless(scheduler, seq_id, priority=1, prompt=1)
        step(scheduler)
    endless(scheduler, 2, priority=0)
    output = scheduler.schedule()
    assert chunks(output) == {0: 1, 2: 1}  # a step that fails
    for seq_id in (3, 4):
        endless(scheduler, seq_id, priority=-1, prompt=1)
    assert chunks(step(scheduler)[0]) == {3: 1, 4: 1}
    assert set(parked(scheduler)) == {0, 1}, "2 has computed nothing"
    scheduler.close(3)
    assert chunks(step(scheduler)[0]).keys() == {4, 2}
