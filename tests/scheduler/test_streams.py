"""Streams between turns: forks and edits."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paged_stream.scheduler.output import CopyBlock, ParkTokens
from paged_stream.scheduler.sampling_params import SamplingParams
from paged_stream.scheduler.sequence import _TRIM_SLACK, Sequence, SequenceStatus
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


def test_a_turn_that_ends_before_its_step_has_done_nothing():
    scheduler = make_scheduler()
    sequence = stream(scheduler, 0, range(30))
    scheduler.rewind(0, 25)
    before = sequence.state()
    generate(scheduler, 0, max_tokens=1)
    scheduler.schedule()  # and the step was given up
    scheduler.end_turn(0)
    assert sequence.state() == before and not sequence.num_pending_tokens


def test_the_token_read_again_is_not_written_into_a_shared_block():
    scheduler = make_scheduler()
    stream(scheduler, 0, range(25))
    scheduler.rewind(0, 24)
    scheduler.fork(0, 1)
    generate(scheduler, 1, max_tokens=1)
    assert not scheduler.take_operations()
    (scheduled,) = step(scheduler)[0].sequences
    (copy,) = scheduler.take_operations()
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


# What is visible


class Shown:
    """What a sequence shows, kept in lists: of each token whether something was cut out before."""

    def __init__(self, sinks: int, window: int) -> None:
        self.sinks, self.window = sinks, window
        self.tokens: list[tuple[int, bool]] = []  # the sinks, and behind them what is left
        self.count = 0
        self.is_cut = self.has_evicted = False  # what is before the next token

    def append(self, token_id: int) -> None:
        self.tokens.append((token_id, self.is_cut))
        self.count, self.is_cut = self.count + 1, False
        while len(self.tokens) > self.sinks and len(self.tokens) - self.sinks >= self.window:
            del self.tokens[self.sinks]
            self.has_evicted = True

    def cut(self, back: int, length: int) -> None:
        at = len(self.tokens) - back
        del self.tokens[at : at + length]
        if at < len(self.tokens):
            self.tokens[at] = (self.tokens[at][0], True)
        else:
            self.is_cut = True

    def rewind(self, length: int) -> None:
        self.is_cut = self.tokens[-length][1]
        self.count -= length
        del self.tokens[-length:]

    def runs(self) -> list[tuple[int, list[int], str | None]]:
        sinks = min(self.sinks, len(self.tokens))
        rest = [*self.tokens[sinks:], (None, self.is_cut)]
        runs: list[tuple[int, list[int], str | None]] = []
        if sinks:
            runs.append((0, [token for token, _ in self.tokens[:sinks]], None))
        for index, (token, is_cut) in enumerate(rest):
            position = self.count - len(rest) + 1 + index
            is_first = index == 0 and position > sinks
            if is_cut or is_first or (token is not None and not runs):
                gone = "cut" if is_cut else "evicted" if is_first and self.has_evicted else None
                runs.append((position, [], gone))
            if token is not None:
                runs[-1][1].append(token)
        return runs if self.count else []


@given(st.data(), st.integers(0, 3), st.integers(1, 9))
def test_what_is_visible_comes_in_runs_between_which_something_is_missing(data, sinks, window):
    sequence = Sequence(0, SinkWindow(sinks, window), is_stream=True)
    shown, new_ids = Shown(sinks, window), itertools.count()
    for _ in range(data.draw(st.integers(1, 12))):
        behind = max(0, sequence.num_tokens - max(sequence.first_kept, sinks))
        operation = data.draw(
            st.sampled_from(["append", "cut", "rewind"] if behind else ["append"])
        )
        if operation == "append":
            for token_id in itertools.islice(new_ids, data.draw(st.integers(1, 6))):
                sequence.append([token_id])
                sequence.advance(1)
                sequence.trim(sequence.num_tokens, slack=0)
                shown.append(token_id)
        elif operation == "cut":
            back = data.draw(st.integers(1, behind))
            length = data.draw(st.integers(1, back))
            start = sequence.num_tokens - back
            sequence.cut(start, start + length)
            shown.cut(back, length)
        else:
            length = data.draw(st.integers(1, behind))
            sequence.rewind(sequence.num_tokens - length)
            shown.rewind(length)
        found = [(at, ids.tolist(), gone) for at, ids, gone in sequence.visible_runs()]
        assert found == shown.runs()
        assert len(sequence.cuts) <= sequence.num_tokens
        restored = Sequence.restore(0, sequence.state(), max_tokens=None)
        assert restored.visible_runs() == sequence.visible_runs()


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
