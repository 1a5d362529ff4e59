"""What finished requests and turns were like, counted."""

from __future__ import annotations

from bisect import bisect_left
from operator import add

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paged_stream import Histogram, SamplingParams
from paged_stream.engine.histogram import Tally
from paged_stream.engine.turn_counts import TurnCounts
from tests.engine.stream_oracle import greedy, text_ids, tokens_of

BOUNDS = (0.5, 1.0, 8.0)
VALUES = st.lists(st.floats(0, 20, width=16))


def tallied(values):
    tally = Tally(BOUNDS)
    for value in values:
        tally.add(value)
    return tally.histogram()


@given(VALUES)
def test_each_value_is_in_its_bucket(values):
    histogram = tallied(values)
    buckets = [bisect_left([*BOUNDS, float("inf")], value) for value in values]
    assert histogram.counts == tuple(map(buckets.count, range(4)))
    assert histogram.num_values == len(values)
    assert histogram.total == pytest.approx(sum(values))


@given(VALUES, VALUES)
def test_histograms_add_up(first, second):
    both = add(tallied(first), tallied(second))
    whole = tallied([*first, *second])
    assert (both.bounds, both.counts) == (whole.bounds, whole.counts)
    assert both.total == pytest.approx(whole.total)


def sums(stats, *names):
    return [(getattr(stats, name).num_values, getattr(stats, name).total) for name in names]


def test_requests_and_turns_are_counted_when_they_finish(make_engine):
    with make_engine() as engine:
        engine.generate([text_ids(9, 1)], greedy(5), use_tqdm=False)
        two = SamplingParams(n=2, max_tokens=3, ignore_eos=True, seed=1)
        engine.generate([text_ids(4, 2)], two, use_tqdm=False)
        with engine.open_stream() as stream:
            stream.append(text_ids(20, 3))
            tokens_of(stream.generate(greedy(7)))
            left = stream.generate(greedy(7))  # and left before its end
            next(left)
            left.close()
        turns = engine.stats().turns
    assert turns.finish_reasons == {"length": 4}
    assert sums(turns, "prompt_tokens", "generated_tokens") == [(4, 9 + 4 + 4 + 20), (4, 18)]
    assert sum(turns.first_token_seconds.counts) == sum(turns.queue_seconds.counts) == 4
    assert turns.queue_seconds.total <= turns.first_token_seconds.total <= turns.turn_seconds.total
    rest = turns.turn_seconds.total - turns.first_token_seconds.total
    # Each has 5, 3, 3 and 7 tokens, and the time after the first is shared by those behind it.
    assert rest / 6 <= turns.token_seconds.total <= rest / 2


def test_stages_that_never_came_are_left_out(make_engine):
    with make_engine() as engine:
        engine.add_request("r", text_ids(5, 1), greedy(5))
        engine.abort("r")
        turns = engine.stats().turns
    assert turns.finish_reasons == {"abort": 1}
    assert turns.first_token_seconds.num_values == turns.queue_seconds.num_values == 0
    assert turns.token_seconds.num_values == 0 and turns.turn_seconds.num_values == 1


def test_nothing_adds_nothing():
    nothing = TurnCounts().stats()
    assert nothing + nothing == nothing
    assert isinstance(nothing.turn_seconds, Histogram)
