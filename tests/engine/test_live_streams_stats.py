"""What streams and engines tell of themselves."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.engine.stream_oracle import greedy, text_ids, tokens_of


@pytest.mark.parametrize("caching", [False, True])
@pytest.mark.parametrize("sinks, window", [(4, 24), (0, 5), (11, 1)])
def test_every_eviction_is_told_once_and_in_order(make_engine, tmp_path, caching, sinks, window):
    engine = make_engine(enable_prefix_caching=caching)
    seen: list[int] = []

    def on_evict(first: int, stop: int) -> None:
        assert first < stop
        seen.extend(range(first, stop))

    with engine.open_stream(num_sink_tokens=sinks, window_size=window) as before:
        before.append(text_ids(150))  # so that the cache has the prompt already
        before._at_rest(lambda: None)
    stream = engine.open_stream(num_sink_tokens=sinks, window_size=window, on_evict=on_evict)

    def check() -> None:
        stream._at_rest(lambda: None)
        assert seen == list(range(sinks, max(sinks, stream.stats().window_start)))

    stream.append(text_ids(150))
    check()
    for number in range(4):
        stream.append(text_ids(number + 1))
        tokens_of(stream.generate(greedy(5)))
        check()
        if window > 5:
            stream.rewind(stream.position - 4)
            check()
        stream.park()
    stream.save(tmp_path / "a.stream")
    stream.close()
    stream = engine.load_stream(tmp_path / "a.stream", on_evict=on_evict)
    stream.append(text_ids(70))
    check()


def test_stream_stats_mean_what_they_say(make_engine):
    engine = make_engine()
    stream = engine.open_stream()
    stats = stream.stats()
    assert (stats.num_tokens, stats.num_pending_tokens, stats.num_visible_tokens) == (0, 0, 0)
    stream.append(text_ids(20))
    stats = stream.stats()
    assert (stats.num_tokens, stats.num_pending_tokens, stats.num_visible_tokens) == (20, 20, 0)
    stream._at_rest(lambda: None)
    stats = stream.stats()
    assert (stats.num_tokens, stats.num_pending_tokens, stats.num_visible_tokens) == (20, 1, 19)
    assert (stats.num_evicted_tokens, stats.window_start, stats.num_blocks) == (0, 4, 3)
    reading = stream.generate(greedy(3))
    next(reading)
    stream.append([5, 6])  # queue behind the turn
    stats = stream.stats()
    assert (stats.num_tokens, stats.num_pending_tokens) == (21, 3)
    assert len(list(reading)) == 2
    stats = stream.stats()
    assert (stats.num_tokens, stats.num_pending_tokens) == (25, 3)
    stream.append(text_ids(30))
    stream._at_rest(lambda: None)
    stats = stream.stats()
    assert (stats.num_tokens, stats.num_visible_tokens, stats.window_start) == (55, 28, 31)
    assert stats.num_evicted_tokens == 31 - 4
    stream.cut(35, 45)
    stats = stream.stats()
    assert (stats.num_tokens, stats.window_start, stats.num_visible_tokens) == (55, 41, 4 + 13)
    assert stats.num_evicted_tokens == 41 - 4
    stream.rewind(47)
    stats = stream.stats()
    assert (stats.num_tokens, stats.num_pending_tokens) == (47, 0)
    assert (stats.window_start, stats.num_visible_tokens) == (41, 4 + 6)
    assert stats.queue_seconds >= 0


@pytest.mark.parametrize("wrong", [47.0, "47", None])
def test_positions_are_ints(make_engine, wrong):
    engine = make_engine()
    stream = engine.open_stream()
    stream.append(text_ids(60))
    tokens_of(stream.generate(greedy(1)))
    with pytest.raises(ValueError, match="position must be an int"):
        stream.rewind(wrong)
    with pytest.raises(ValueError, match="start must be an int"):
        stream.cut(wrong, 50)
    with pytest.raises(ValueError, match="end must be an int"):
        stream.cut(45, wrong)
    engine.core.scheduler.check_integrity()
    assert stream.position == 61


def test_engine_stats_mean_what_they_say(make_engine):
    engine = make_engine(max_num_seqs=2, enable_prefix_caching=False)
    for number in range(3):
        engine.add_request(str(number), text_ids(5, number), greedy(4))
    stats = engine.stats()
    assert (stats.num_running, stats.num_waiting, stats.num_steps) == (0, 3, 0)
    engine.step()
    stats = engine.stats()
    assert (stats.num_running, stats.num_waiting, stats.num_steps) == (2, 1, 1)
    assert (stats.num_computed_tokens, stats.num_generated_tokens) == (10, 2)
    assert stats.num_used_blocks == 2
    assert stats.kv_bytes == 2 * engine.cache_plan.block_bytes
    while engine.has_unfinished_requests():
        engine.step()
    stats = engine.stats()
    assert (stats.num_running, stats.num_waiting, stats.num_used_blocks) == (0, 0, 0)
    assert (stats.num_computed_tokens, stats.num_generated_tokens) == (3 * (5 + 3), 12)
    assert stats.num_started_turns == 3
    assert stats.queue_seconds > 0 and stats.step_seconds > 0
    assert stats.num_evicted_tokens == 0
    with engine.open_stream() as stream:
        stream.append(text_ids(60))
        tokens_of(stream.generate(greedy(1)))
        assert engine.stats().num_streams == 1
        assert engine.stats().num_evicted_tokens == stream.stats().window_start - 4 == 33
    assert engine.stats().num_started_turns == 4


def test_a_conversation_rewound_to_its_pin_begins_anew(make_engine):
    engine = make_engine()
    stream = engine.open_stream(pin=[{"role": "system", "content": "be brief"}], window_size=100)
    pinned = stream.position
    first = tokens_of(stream.chat("hi", greedy(3)))
    tokens_of(stream.chat("ho", greedy(2)))
    assert stream.stats().window_start == pinned
    stream.rewind(pinned)
    assert tokens_of(stream.chat("hi", greedy(3))) == first


def test_a_conversation_rewound_to_where_its_window_begins(make_engine):
    """Not even the last token before it is known any more."""
    stream = make_engine().open_stream()
    tokens_of(stream.chat("a question that is longer than the window", greedy(3)))
    stream.park()
    stream.rewind(stream.stats().window_start)
    assert len(tokens_of(stream.chat("hi", greedy(3)))) == 3


def test_messages_that_are_refused_leave_no_trace(make_engine):
    stream = make_engine().open_stream()
    tokens_of(stream.chat("hi", greedy(3)))
    position = stream.position
    for messages, params, reason in (
        ("ho", replace(greedy(3), n=2), "n must be 1 for a stream"),
        ("\ud800", greedy(3), "prompt is not valid text"),
        ([{"role": "user", "content": None}], greedy(3), "the content must be text"),
        ([{"role": "user", "content": [{"type": "text"}]}], greedy(3), "content must be text"),
    ):
        with pytest.raises(ValueError, match=reason):
            stream.chat(messages, params)
        assert stream.position == position and not stream.is_generating


def test_the_cache_becomes_resident_as_streams_fill_it(make_engine):
    # Prefix caching keeps what has left the window until there is no fresh block any more.
    engine = make_engine(kv_cache_memory_bytes=1 << 30, enable_prefix_caching=False)
    block_bytes = engine.cache_plan.block_bytes
    reserved = engine.stats().kv_reserved_bytes
    assert reserved == (engine.cache_plan.num_blocks + 1) * block_bytes > (1 << 30) - block_bytes
    assert engine.stats().kv_resident_bytes == 0
    stream = engine.open_stream(window_size=800)
    resident = []
    for number in range(6):
        stream.append(text_ids(200, number))
        tokens_of(stream.generate(greedy(1)))
        resident.append(engine.stats().kv_resident_bytes)
        # The cache is 2 layers' K and V: the last page of each may be partly used.
        assert stream.stats().kv_bytes <= resident[-1] <= stream.stats().kv_bytes + 4 * (2 << 20)
    assert resident[-1] == resident[-2]  # the window is full
    stream.close()
    with engine.open_stream(window_size=800) as stream:
        stream.append(text_ids(800))
        tokens_of(stream.generate(greedy(1)))
        assert engine.stats().kv_resident_bytes <= 2 * resident[-1] < reserved // 10
