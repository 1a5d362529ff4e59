"""What was appended is taken back as far as it is not computed; what is pending is rewound for
nothing."""

from __future__ import annotations

import pytest

from paged_stream.scheduler.sequence import SequenceStatus
from paged_stream.scheduler.sink_window import SinkWindow
from tests.scheduler.builders import (
    SMALL,
    add,
    chunks,
    generate,
    make_scheduler,
    run,
    step,
    stream,
)


def test_what_is_computed_stays_and_the_stream_is_as_if_that_had_been_appended():
    scheduler = make_scheduler()
    sequence = stream(scheduler, 0, range(10))
    scheduler.append(0, range(100, 200))
    for _ in range(2):
        step(scheduler)
    computed = sequence.num_computed_tokens
    assert 10 < computed < 109
    assert scheduler.withdraw(0, 10, 110, 9) == computed + 1 == sequence.num_tokens
    scheduler.check_integrity()
    assert not scheduler.has_unfinished() and list(scheduler.idle_streams()) == [0]
    twin = stream(scheduler, 1, [*range(10), *range(100, 200)][: computed + 1])
    assert sequence.state() == twin.state()


def test_what_has_not_begun_is_taken_back_whole():
    scheduler = make_scheduler(num_blocks=6)
    sequence = stream(scheduler, 0, range(10))
    add(scheduler, 1, 30)
    step(scheduler)  # which parks the stream
    scheduler.append(0, range(100, 200))
    assert scheduler.num_waiting == 1
    assert scheduler.withdraw(0, 10, 110, 9) == 10
    scheduler.check_integrity()
    assert (scheduler.num_waiting, sequence.num_tokens, sequence.num_computed_tokens) == (0, 10, 9)


@pytest.mark.parametrize("back", [1, 2, 3])
def test_what_is_parked_comes_back_as_it_was(back):
    """Also if tokens that are not computed have pushed out a part of it when it is rewound."""
    scheduler = make_scheduler()
    sequence = stream(scheduler, 0, range(30))
    scheduler.park(0)
    scheduler.append(0, range(100, 103))
    scheduler.rewind(0, 31 - back)
    generate(scheduler, 0, max_tokens=1)
    step(scheduler)
    parked, restored, *_ = scheduler.take_operations()
    assert len(parked.slots) == len(restored.slots)
    assert sequence.num_tokens == 32 - back


def test_a_stream_that_was_rewound_is_as_it_was():
    """All of it is computed, and the last token is read again."""
    scheduler = make_scheduler()
    sequence = stream(scheduler, 0, range(10))
    scheduler.rewind(0, 8)
    scheduler.append(0, range(100, 200))
    assert scheduler.withdraw(0, 8, 108, 8) == 8 == sequence.num_computed_tokens
    scheduler.check_integrity()
    generate(scheduler, 0, max_tokens=1)
    assert chunks(step(scheduler)[0]) == {0: 1}


def test_sinks_that_were_taken_back_are_others_then():
    scheduler = make_scheduler()
    sequence = scheduler.open(0, SMALL, is_stream=True)
    scheduler.append(0, [1, 2])
    scheduler.append(0, range(100, 120))
    assert scheduler.withdraw(0, 2, 22, 0) == 2
    scheduler.append(0, [3, 4, 5])
    assert sequence.visible_token_ids().tolist() == [1, 2, 3, 4, 5]


def test_hashes_of_what_was_taken_back_are_forgotten():
    """Otherwise other tokens at these places would share blocks that hold something else."""
    window = SinkWindow(4, 60)
    scheduler = make_scheduler(num_blocks=17 * 2)
    scheduler.open(9, window, priority=-1)
    scheduler.append(9, range(100, 140))
    generate(scheduler, 9, max_tokens=None)
    scheduler.open(8, window, priority=-1)
    scheduler.append(8, range(500, 540))
    generate(scheduler, 8, max_tokens=None)
    for _ in range(8):
        step(scheduler)
    scheduler.open(0, window, is_stream=True)
    scheduler.append(0, [*range(100, 104), *range(104, 140)])
    step(scheduler)  # it waits, and is looked for
    assert scheduler.withdraw(0, 4, 40, 0) == 4
    scheduler.append(0, range(300, 336))
    scheduler.close(8)
    assert step(scheduler)[0].sequences[-1].num_computed_tokens == 4


@pytest.mark.parametrize("behind", ["append", "turn"])
def test_what_something_has_come_behind_stays(behind):
    scheduler = make_scheduler()
    sequence = stream(scheduler, 0, range(10))
    scheduler.append(0, range(100, 150))
    if behind == "append":
        scheduler.append(0, [7])
    else:
        generate(scheduler, 0, max_tokens=3)
    assert scheduler.withdraw(0, 10, 60, 9) == sequence.num_tokens == 60 + (behind == "append")


@pytest.mark.parametrize("position", [5, 12, 25, 27, 29])
def test_a_rewind_to_what_is_computed_is_what_it_is_when_all_is_computed(position):
    """The pending tokens would have pushed older ones out of the window, so they are out."""
    found = []
    for settles in (False, True):
        scheduler = make_scheduler()
        sequence = stream(scheduler, 0, range(30))
        scheduler.append(0, range(100, 107))
        if settles:
            run(scheduler)
        if position < sequence.first_settled:
            with pytest.raises(AssertionError):
                run(scheduler), scheduler.rewind(0, position)
            return
        scheduler.rewind(0, position)
        assert not scheduler.has_unfinished()
        scheduler.append(0, [200, 201])
        run(scheduler)
        found.append((sequence.state(), len(scheduler.kept_slots(0))))
        scheduler.check_integrity()
    assert found[0] == found[1]


def test_a_rewind_before_what_pending_tokens_would_push_out_of_the_window():
    scheduler = make_scheduler()
    sequence = stream(scheduler, 0, range(30))
    scheduler.append(0, range(100, 200))
    for position in (45, 30, 28, sequence.first_kept):
        scheduler.rewind(0, position)
        assert sequence.num_tokens == position
        scheduler.check_integrity()
    assert not scheduler.has_unfinished()
    assert sequence.status is SequenceStatus.IDLE


def test_a_rewind_that_finds_no_room_leaves_what_is_pending():
    scheduler = make_scheduler(num_blocks=6)
    stream(scheduler, 0, range(30))
    add(scheduler, 1, 30)
    step(scheduler)
    scheduler.append(0, range(100, 103))
    with pytest.raises(RuntimeError, match="the cache has no room"):
        scheduler.rewind(0, 25)
    scheduler.check_integrity()
    assert scheduler.num_waiting == 1
    run(scheduler)
    assert scheduler.sequences[0].num_computed_tokens == 32


def test_blocks_of_an_edited_stream_are_not_found_by_others():
    """The window of what comes behind a rewind is another, also if nothing was computed again."""
    scheduler = make_scheduler()
    stream(scheduler, 0, range(40))
    scheduler.append(0, range(100, 106))
    scheduler.rewind(0, 39)
    scheduler.append(0, range(200, 212))
    run(scheduler)
    stream(scheduler, 1, [*range(39), *range(200, 212)])
    assert scheduler.sequences[1].num_prefix_hits <= 36
    assert chunks(step(scheduler)[0]) == {}
