"""What is yielded of a request that was run twice is what one run gives, in whatever pieces."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paged_stream.engine.outputs import RequestDelta, RequestMetrics
from paged_stream.pool.errors import PoolError
from paged_stream.pool.request_progress import RequestProgress
from paged_stream.scheduler.output import TokenLogprob

TOKENS = list(range(100, 112))
TEXT = "".join(f"<{token}>" for token in TOKENS)


def logprob(token_id):
    return TokenLogprob(token_id, -1.0, 1, {})


METRICS = RequestMetrics(arrival_time=1.0)


def delta_of(token_ids=(), text="", *, reason=None, logprobs=None, prompt_logprobs=None):
    return RequestDelta(
        request_id="of this run",
        index=0,
        delta_text=text,
        delta_token_ids=list(token_ids),
        finished=reason is not None,
        finish_reason=reason,
        stop_reason=None,
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
        metrics=METRICS,
    )


def run_of(cuts, lag):
    """Deltas of one run that is cut at ``cuts``; text comes ``lag`` characters late."""
    ends = [*sorted(cuts), len(TOKENS)]
    deltas, at, at_text = [], 0, 0
    for prompt_logprobs in ([logprob(i) for i in range(2)], [logprob(i) for i in range(2, 5)]):
        deltas.append(delta_of(prompt_logprobs=prompt_logprobs))
    for end in ends:
        is_last = end == len(TOKENS)
        stop = len(TEXT) if is_last else max(at_text, 5 * end - lag)
        tokens = TOKENS[at:end]
        reason = "length" if is_last else None
        logprobs = [logprob(token) for token in tokens]
        deltas.append(delta_of(tokens, TEXT[at_text:stop], reason=reason, logprobs=logprobs))
        at, at_text = end, stop
    return deltas


cuts = st.sets(st.integers(1, len(TOKENS) - 1))


@given(runs=st.lists(st.tuples(cuts, st.integers(0, 9), st.integers(0, 14)), max_size=3), last=cuts)
def test_pieces_of_any_size(runs, last):
    progress = RequestProgress("mine", 1)
    yielded = []
    for pieces, lag, num_read in [*runs, (last, 0, None)]:
        progress.begin()
        for delta in run_of(pieces, lag)[:num_read]:
            if (fresh := progress.note(delta)) is not None:
                yielded.append(fresh)
    assert progress.is_over
    assert sum((delta.delta_token_ids for delta in yielded), []) == TOKENS
    assert "".join(delta.delta_text for delta in yielded) == TEXT
    assert [e.token_id for d in yielded for e in d.logprobs or ()] == TOKENS
    assert [e.token_id for d in yielded for e in d.prompt_logprobs or ()] == list(range(5))
    assert [delta.finished for delta in yielded].count(True) == 1
    assert {delta.request_id for delta in yielded} == {"mine"}


def test_the_first_run_says_when_a_request_arrived_and_had_its_first_token():
    progress = RequestProgress("mine", 1)
    progress.begin()
    metrics = replace(METRICS, first_scheduled_time=2.0, first_token_time=3.0)
    first = progress.note(replace(delta_of([1]), metrics=metrics))
    assert first.metrics.arrival_time > 1e9  # when the pool took it
    assert first.metrics == replace(metrics, arrival_time=first.metrics.arrival_time)
    progress.begin()
    again = RequestMetrics(
        arrival_time=5.0, first_scheduled_time=6.0, first_token_time=7.0, finished_time=8.0
    )
    last = progress.note(replace(delta_of([1, 2], reason="length"), metrics=again))
    assert last.metrics == replace(first.metrics, finished_time=8.0)


def test_what_nobody_finished_has_ended_now():
    progress = RequestProgress("mine", 1)
    progress.begin()
    first = progress.note(replace(delta_of([1]), metrics=replace(METRICS, first_token_time=2.0)))
    [last] = progress.last_deltas("abort")
    assert last.metrics.first_token_time == 2.0
    assert last.metrics.finished_time >= first.metrics.arrival_time == last.metrics.arrival_time


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ([delta_of([1, 2, 3])], [delta_of([1]), delta_of([2, 4, 5, 6])]),
        ([delta_of([1, 2, 3])], [delta_of([4, 2]), delta_of([3])]),
        ([delta_of([1, 2, 3])], [delta_of([2, 1, 3])]),
        ([delta_of([1, 2, 3])], [delta_of([1, 2], reason="stop")]),
        ([delta_of([1, 2], reason="stop")], [delta_of([1, 2, 3])]),
        ([delta_of([1, 2], reason="stop")], [delta_of([1, 2]), delta_of([3])]),
    ],
)
def test_other_tokens_are_refused(first, second):
    progress = RequestProgress("mine", 1)
    for run in (first, second[:-1]):  # one that ends before it shows that it is another
        progress.begin()
        for delta in run:
            progress.note(delta)
    progress.begin()
    with pytest.raises(PoolError, match=r"mine: its replica died after [23] tokens"):
        for delta in second:
            progress.note(delta)


def test_an_endless_request_takes_no_memory():
    progress = RequestProgress("mine", 1)
    progress.begin()

    def note(count):
        for _ in range(count):
            progress.note(delta_of(TOKENS, TEXT))

    note(10)
    tracemalloc.start()
    note(1000)
    grown, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert grown < 4 * 1000 * len(TOKENS) / 10
