"""Streams between turns: forks and edits."""

from __future__ import annotations

import itertools

import pytest

from paged_stream.scheduler.output import CopyBlock, ParkTokens
from paged_stream.scheduler.sampling_params import SamplingParams
from paged_stream.scheduler.sequence import _TRIM_SLACK, SequenceStatus
from paged_stream.scheduler.sink_window import SinkWindow
from tests.scheduler.builders import (
    SMALL,
    STOP,
    chunks,
    generate,
    make_scheduler,
    parked,
    run,
    step,
    stream,
)

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
    assert parked(scheduler) == [1]
    assert scheduler.take_operations() == [ParkTokens(1, slots)]
    generate(scheduler, 1, max_tokens=2)
    run(scheduler)
    assert parked(scheduler) == [0]


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


def test_a_fork_copies_the_sink_block_that_is_partly_filled():
    scheduler = make_scheduler()
    stream(scheduler, 0, range(7), SinkWindow(12, 4))
    scheduler.fork(0, 1)
    parent, child = scheduler.kv[0].row, scheduler.kv[1].row
    assert child[0] == parent[0] and child[1] != parent[1]
    assert scheduler.take_operations() == [CopyBlock(parent[1], child[1])]


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


def test_what_is_appended_between_turns_asks_for_nothing():
    scheduler = make_scheduler()
    stream(scheduler, 0, range(10))
    generate(scheduler, 0, max_tokens=1, prompt_logprobs=0, repetition_penalty=2.0)
    run(scheduler)
    scheduler.append(0, [21, 22])
    (scheduled,) = step(scheduler)[0].sequences
    assert scheduled.sampling_params == SamplingParams()


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


def test_a_rewind_where_nothing_was_evicted_changes_nothing_but_the_end():
    scheduler = make_scheduler()
    sequence = stream(scheduler, 0, range(18))
    for num_tokens in (12, 4):
        scheduler.rewind(0, num_tokens)
        assert sequence.sink_window == SMALL and sequence.num_tokens == num_tokens
    assert sequence.num_pending_tokens == 0
    scheduler.append(0, [])
    assert not scheduler.has_unfinished()


@pytest.mark.parametrize(("position", "prompt"), [(35, 30), (26, 26)])
def test_a_rewind_leaves_of_the_prompt_what_is_left(position, prompt):
    scheduler = make_scheduler()
    sequence = stream(scheduler, 0, range(30))
    generate(scheduler, 0, max_tokens=10)
    run(scheduler)
    scheduler.rewind(0, position)
    assert sequence.state().num_prompt_tokens == prompt


@pytest.mark.parametrize(
    ("start", "end", "prompt"), [(25, 28, 30), (28, 34, 34), (30, 34, 34), (32, 36, 34)]
)
def test_a_cut_takes_from_prompt_and_output_what_it_takes_of_each(start, end, prompt):
    """Positions stay what they were, so the prompt ends where what is left of the output begins."""
    scheduler = make_scheduler()
    sequence = stream(scheduler, 0, range(30))
    generate(scheduler, 0, max_tokens=10)
    run(scheduler)
    scheduler.cut(0, start, end)
    assert sequence.state().num_prompt_tokens == prompt


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


# On the host


@pytest.mark.parametrize("caching", [False, True])
def test_the_host_keeps_the_window_and_little_more(caching):
    scheduler = make_scheduler(enable_prefix_caching=caching)
    sequence = stream(scheduler, 0, range(30))
    bound = 16 + _TRIM_SLACK + 4  # the window, and a block that is not full
    generate(scheduler, 0, max_tokens=2000)
    while scheduler.has_unfinished():
        step(scheduler)
        assert len(sequence._tail) <= bound
    for start in range(0, 2000, 100):
        scheduler.append(0, range(start, start + 100))
        run(scheduler)
        assert len(sequence._tail) <= bound
    assert sequence.num_tokens == 4030
    scheduler.park(0)
    assert len(sequence._tail) <= 16


def test_ids_are_kept_until_their_block_is_hashed_even_behind_the_window():
    scheduler = make_scheduler(max_num_seqs=1, max_num_batched_tokens=3)
    sequence = stream(scheduler, 0, range(600), SinkWindow(0, 2))
    assert sequence.num_computed_tokens == 599 and scheduler.num_prefix_hits == 0
    assert len(sequence._tail) <= _TRIM_SLACK + 4
