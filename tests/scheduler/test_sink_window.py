"""`SinkWindow` against a cache kept as the published algorithm keeps it."""

from __future__ import annotations

import pytest

from paged_stream.scheduler.sink_window import SinkWindow


@pytest.mark.parametrize("local_window", [None, 1, 2, 5, 6, 7, 8, 9, 10, 11, 40, 100])
@pytest.mark.parametrize("sinks, window_size", [(0, 6), (4, 6), (3, 1), (10, 2), (0, None)])
def test_visibility_is_that_of_the_published_cache(sinks, window_size, local_window):
    window = SinkWindow(sinks, window_size)
    cache: list[int] = []  # positions in the order of their places
    for query in range(50):
        cache.append(query)
        seen = cache if local_window is None else cache[-local_window:]
        visible = [key for key in range(60) if window.is_visible(key, query, local_window)]
        assert visible == seen
        assert window.sink_position(query) == len(cache) - 1
        starts = window.sink_start(query, local_window), window.window_start(query, local_window)
        for start, part in zip(starts, (range(sinks), range(sinks, 60)), strict=True):
            assert [key for key in part if start <= key <= query] == [k for k in seen if k in part]
        # Evicts after the step, so that the next one finds room for its own token.
        if window_size is not None and len(cache) == sinks + window_size:
            del cache[sinks]


@pytest.mark.parametrize("sinks, window_size", [(0, 6), (4, 6), (0, None)])
def test_a_local_window_of_everything_changes_nothing(sinks, window_size):
    window = SinkWindow(sinks, window_size)
    for query in range(100):
        everything = window.num_visible(query)
        for key in range(query + 2):
            assert window.is_visible(key, query) == window.is_visible(key, query, everything)
