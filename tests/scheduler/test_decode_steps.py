"""When several steps are computed at once, how many, and what that leaves behind."""

from __future__ import annotations

import pytest

from paged_stream.scheduler.output import ModelOutput
from paged_stream.scheduler.sink_window import SinkWindow
from tests.scheduler.builders import (
    SMALL,
    STOP,
    add,
    chunks,
    generate,
    make_scheduler,
    run,
    sampled,
    step,
    stream,
)


def launches(scheduler) -> list[int]:
    return [output.num_steps for output in run(scheduler)]


def test_steps_up_to_the_end_of_the_longest_turn():
    scheduler = make_scheduler(num_decode_steps=6)
    add(scheduler, 0, 5, max_tokens=3)
    add(scheduler, 1, 5, max_tokens=10)
    # The prompts with the first tokens, then as many as are left.
    assert launches(scheduler) == [1, 6, 3]


def test_the_first_who_ends_makes_room_for_who_waits():
    scheduler = make_scheduler(num_decode_steps=5, max_num_seqs=2)
    for seq_id, max_tokens in enumerate((4, 20, 2)):
        add(scheduler, seq_id, 5, max_tokens=max_tokens)
    assert launches(scheduler) == [1, 3, 1, 5, 5, 5]


def test_prompts_take_single_steps():
    scheduler = make_scheduler(num_decode_steps=5)
    add(scheduler, 0, 3, max_tokens=30)
    step(scheduler)
    assert step(scheduler)[0].num_steps == 5
    add(scheduler, 1, 40, max_tokens=30)
    outputs = [step(scheduler)[0] for _ in range(5)]
    assert [output.num_steps for output in outputs] == [1, 1, 1, 5, 5]
    assert chunks(outputs[2]) == {0: 1, 1: 10}


@pytest.mark.parametrize(
    "params",
    [
        {"logprobs": 0},
        {"repetition_penalty": 1.1},
        {"presence_penalty": 0.1},
        {"frequency_penalty": 0.1},
        {"min_tokens": 12},
    ],
    ids=str,
)
def test_one_who_needs_the_host_holds_up_the_batch(params):
    scheduler = make_scheduler(num_decode_steps=5)
    add(scheduler, 0, 5, max_tokens=40)
    scheduler.open(1, SMALL, max_tokens=20)
    scheduler.append(1, [1] * 5)
    generate(scheduler, 1, max_tokens=12, **params)
    outputs = run(scheduler)
    together = [output.num_steps for output in outputs if len(output.sequences) == 2]
    assert together == [1] * 12
    assert max(output.num_steps for output in outputs) == 5


@pytest.mark.parametrize("window_size", range(1, 20))
@pytest.mark.parametrize("block_size", [1, 2, 4, 7])
def test_what_may_be_taken_back_is_in_nobodys_window(window_size, block_size):
    """By a simulation of the ring: so many steps are computed and all taken back."""
    window = SinkWindow(0, window_size)
    ring = window.ring_blocks(1, block_size)
    for computed in range(60):
        steps = window.max_decode_steps(computed, ring, block_size)
        assert steps >= (block_size if ring > 1 else 1)
        if computed % block_size == 0:
            assert steps >= block_size
        for excess in (steps, steps + 1):
            slots: dict[int, int] = {}
            for position in range(computed + excess):
                slots[position % (ring * block_size)] = position
            first = window.window_start(computed)
            kept = all(slots[p % (ring * block_size)] == p for p in range(first, computed))
            first = computed // block_size * block_size
            filled = all(
                slots[p % (ring * block_size)] == p
                for p in range(first, (computed + excess) // block_size * block_size)
            )
            if excess == steps:
                assert kept and filled
            elif computed >= ring * block_size:  # before that, nothing comes round
                assert not (kept and filled)


def test_blocks_are_there_before_the_steps_that_reach_them():
    """And that of the token after them, whose slot the last of them works out."""
    scheduler = make_scheduler(num_decode_steps=5)
    stream(scheduler, 0, [1, 2, 3, 4])
    generate(scheduler, 0, max_tokens=None)
    output, _ = step(scheduler)
    row = list(output.sequences[0].block_row)
    assert output.num_steps == 5 and row[:3].count(-1) == 0 and row[3:] == [-1] * 3


def update(scheduler, output):
    tokens = sampled(output, 8)
    scheduler.update(
        output,
        ModelOutput(tokens, [None] * len(tokens), [[] for _ in tokens], [None] * len(tokens)),
    )


def test_what_follows_is_as_much_again_or_what_is_left():
    scheduler = make_scheduler(num_decode_steps=4)
    add(scheduler, 0, 5, max_tokens=7)
    add(scheduler, 1, 5, max_tokens=3)
    step(scheduler)
    output = scheduler.schedule()
    assert (output.num_steps, output.follows) == (4, False)
    following = scheduler.schedule_following(output)
    assert (following.num_steps, following.follows) == (2, True)
    assert [s.max_new_tokens for s in following.sequences] == [2, 0]
    assert [s.num_computed_tokens for s in following.sequences] == [9, 9]
    assert scheduler.schedule_following(following) is None, "both turns are over by then"
    for scheduled in (output, following):
        update(scheduler, scheduled)
    scheduler.check_integrity()
    assert not scheduler.sequences


def test_nothing_follows_before_it_may():
    scheduler = make_scheduler(num_decode_steps=2)
    wrapped(scheduler, 0, 42)
    scheduler.fork(0, 1)
    generate(scheduler, 0, max_tokens=None)
    output = scheduler.schedule()
    assert output.num_steps == 2
    # The third step from here on would let go of a block that the fork holds.
    assert scheduler.schedule_following(output) is None
    update(scheduler, output)
    scheduler.close(1)
    output = scheduler.schedule()
    assert scheduler.schedule_following(output, {0}) is None, "it is paused"
    assert scheduler.schedule_following(output, {1}).num_steps == 2


def wrapped(scheduler, seq_id: int, num_tokens: int):
    """An idle stream of so many tokens, all but the last computed."""
    sequence = stream(scheduler, seq_id, range(100, 100 + num_tokens))
    assert sequence.num_computed_tokens == num_tokens - 1
    return sequence


def test_steps_end_before_a_block_that_others_hold():
    """The row would change there."""
    scheduler = make_scheduler(num_decode_steps=4)
    wrapped(scheduler, 0, 42)
    scheduler.fork(0, 1)
    generate(scheduler, 0, max_tokens=None)
    sizes = []
    for _ in range(8):
        before = list(scheduler.kv[0].row)
        output, _ = step(scheduler)
        sizes.append(output.num_steps)
        changed = before != list(output.sequences[0].block_row)
        assert not changed or output.sequences[0].num_computed_tokens % 4 == 0
    # The block that is being filled was copied for the fork; then each is let go of in turn.
    assert sizes == [3, 4, 4, 4, 4, 4, 4, 4]
    held = set(scheduler.kv[0].held) & set(scheduler.kv[1].held)
    assert held == {scheduler.kv[0].row[0]}


def launch_and_stop(scheduler, after: int):
    """A launch that the host ends after so many tokens."""
    output = scheduler.schedule()
    seen = []

    def stops(seq_id, token_id):
        seen.append(token_id)
        return len(seen) == after

    tokens = sampled(output, 8)
    result = ModelOutput(tokens, [None] * len(tokens), [[] for _ in tokens], [None] * len(tokens))
    updates = scheduler.update(output, result, stops)
    scheduler.check_integrity()
    return output, updates


def test_what_the_host_stops_is_as_after_single_steps():
    scheduler, single = make_scheduler(num_decode_steps=4), make_scheduler()
    for one in (scheduler, single):
        wrapped(one, 0, 43)
        generate(one, 0, max_tokens=None)
    output, (update,) = launch_and_stop(scheduler, 2)
    assert (output.num_steps, update.token_ids, update.finish_reason) == (4, [8, 8], "stop")
    for _ in range(2):
        step(single)
    single.end_turn(0)
    sequence, other = scheduler.sequences[0], single.sequences[0]
    assert sequence.state() == other.state() and sequence.num_computed_tokens == 44
    assert list(scheduler.idle_streams()) == [0]
    assert scheduler.kept_slots(0) == single.kept_slots(0)


def test_a_block_given_for_nothing_may_be_shared_before_it_is_needed():
    """The launch was to go on in the column of the oldest block that is still visible. A fork holds
    that too when its time comes, so it must not be overwritten then."""
    scheduler = make_scheduler(num_decode_steps=4)
    wrapped(scheduler, 0, 42)  # 41 are computed; the window of 42 begins in the block of 24
    generate(scheduler, 0, max_tokens=None)
    output, _ = launch_and_stop(scheduler, 1)
    assert output.num_steps == 4  # up to position 45, in the block after
    oldest = scheduler.kv[0].live_blocks(42, 4)[1]
    column = scheduler.kv[0].column(oldest, 4)
    assert column == scheduler.kv[0].column(44 // 4, 4)
    scheduler.fork(0, 1)
    shared = scheduler.kv[1].row[column]
    assert shared == scheduler.kv[0].row[column]
    generate(scheduler, 0, max_tokens=None)
    for _ in range(3):
        output, _ = step(scheduler)
    assert scheduler.kv[0].row[column] != shared == scheduler.kv[1].row[column]


def test_a_stop_token_ends_the_turn_where_it_is():
    scheduler = make_scheduler(num_decode_steps=8)
    stream(scheduler, 0, range(20))
    generate(scheduler, 0, max_tokens=None)
    output = scheduler.schedule()
    asked = []
    (update,) = scheduler.update(
        output,
        ModelOutput([[8, 8, STOP]], [None], [[]], [None]),
        lambda seq_id, token_id: asked.append(token_id),
    )
    assert (update.token_ids, update.finish_reason) == ([8, 8, STOP], "stop")
    assert asked == [8, 8]
    assert update.num_computed_tokens == 22 == scheduler.sequences[0].num_tokens - 1
    scheduler.check_integrity()
