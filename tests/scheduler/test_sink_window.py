"""`SinkWindow` against a cache kept as the published algorithm keeps it."""

from __future__ import annotations

import random

import pytest

from paged_stream.scheduler.sink_window import SinkWindow


@pytest.mark.parametrize("local_window", [None, 1, 2, 5, 6, 7, 8, 9, 10, 11, 40, 100])
@pytest.mark.parametrize("sinks, window_size", [(0, 6), (4, 6), (3, 1), (10, 2), (0, None)])
def test_visibility_is_that_of_the_published_cache(sinks, window_size, local_window):
    window = SinkWindow(sinks, window_size)
    cache: list[int] = []  # positions in the order of their places
    for query in range(50):
        cache.append(query)
        check_query(window, query, cache, local_window)
        # Evicts after the step, so that the next one finds room for its own token.
        if window_size is not None and len(cache) == sinks + window_size:
            del cache[sinks]


def check_query(window: SinkWindow, query: int, cache: list[int], local_window: int | None) -> None:
    """``query`` stands last in ``cache``, and sees of it what a local window shows."""
    sinks, horizon = window.num_sink_tokens, query + 10
    seen = cache if local_window is None else cache[-local_window:]
    assert [j for j in range(horizon) if window.is_visible(j, query, local_window)] == seen
    assert window.num_visible(query) == len(cache)
    assert window.sink_position(query) == len(cache) - 1
    starts = window.sink_start(query, local_window), window.window_start(query, local_window)
    for start, part in zip(starts, (range(sinks), range(sinks, horizon)), strict=True):
        assert [j for j in part if start <= j <= query] == [j for j in seen if j in part]


class PublishedCache:
    """The published cache as a list of positions, counted as the engine counts them."""

    def __init__(self, sinks: int, window_size: int) -> None:
        self.sinks, self.recent = sinks, window_size - 1
        self.cache: list[int] = []
        self.position = 0  # of the next token

    def evict(self) -> None:
        if len(self.cache) > self.sinks + self.recent:
            start = len(self.cache) - self.recent
            self.cache = self.cache[: self.sinks] + self.cache[start:]

    def cut(self, start: int, end: int) -> None:
        """Evicts the range [start, end) of places; what is older than it in the window moves up."""
        older = [position + end - start for position in self.cache[self.sinks : start]]
        self.cache = self.cache[: self.sinks] + older + self.cache[end:]

    def rewind(self, position: int) -> None:
        self.cache = [kept for kept in self.cache if kept < position]
        self.position = position

    def floor(self) -> int:
        if self.cache == list(range(self.position)):
            return 0
        return self.cache[self.sinks] if len(self.cache) > self.sinks else self.position


@pytest.mark.parametrize("seed", range(300))
def test_a_floor_describes_what_cuts_and_rewinds_leave(seed):
    rng = random.Random(seed)
    sinks, window_size = rng.randint(0, 6), rng.randint(1, 12)
    local_windows = [None, rng.randint(1, window_size), rng.randint(1, 20)]
    stream, window = PublishedCache(sinks, window_size), SinkWindow(sinks, window_size)
    for _ in range(12):
        for _ in range(rng.randint(0, 15)):
            stream.cache.append(stream.position)
            for local_window in local_windows:
                check_query(window, stream.position, stream.cache, local_window)
            stream.evict()
            stream.position += 1
        length = len(stream.cache)
        if rng.random() < 0.5 and length > sinks:
            start, end = sorted(rng.choices(range(sinks, length + 1), k=2))
            stream.cut(start, end)
        else:
            behind = range(
                max(sinks, stream.floor(), stream.position - window_size + 1), stream.position + 1
            )
            stream.rewind(rng.choice([*range(min(sinks, length) + 1), *behind]))
        floor = stream.floor()
        if floor == 0 and stream.position >= sinks and rng.random() < 0.5:
            floor = sinks  # says the same
        window = SinkWindow(sinks, window_size, floor)


@pytest.mark.parametrize("sinks, window_size", [(0, 6), (4, 6), (0, None)])
def test_a_local_window_of_everything_changes_nothing(sinks, window_size):
    window = SinkWindow(sinks, window_size)
    for query in range(100):
        everything = window.num_visible(query)
        for key in range(query + 2):
            assert window.is_visible(key, query) == window.is_visible(key, query, everything)


def test_blocks_do_not_depend_on_the_floor():
    plain, floored = SinkWindow(5, 20), SinkWindow(5, 20, 77)
    assert floored.num_sink_blocks(4) == plain.num_sink_blocks(4)
    for chunk in range(1, 20):
        ring = floored.ring_blocks(chunk, 4)
        assert ring == plain.ring_blocks(chunk, 4)
        assert floored.max_chunk(ring, 4) == plain.max_chunk(ring, 4)
        assert floored.column(chunk, ring, 4) == plain.column(chunk, ring, 4)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((4, 8, 3), "window_floor must be 0 or an int >= num_sink_tokens=4, got 3"),
        ((4, 8, -1), "got -1"),
        ((0, 8, -1), "got -1"),
        ((4, 8, 9.0), "got 9.0"),
        ((0, 8, False), "got False"),
        ((4, 8, None), "got None"),
        ((0, None, 5), "window_floor must be 0, got 5"),
        ((4, 0), "window_size must be an int >= 1 or None, got 0"),
        ((-1, 8), "num_sink_tokens must be an int >= 0, got -1"),
    ],
)
def test_what_is_no_window_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        SinkWindow(*arguments)
