"""A live stream equals one long sequence, whatever the turns; memory stays the same."""

from __future__ import annotations

import pytest

from paged_stream import SamplingParams
from paged_stream.engine import turns

GREEDY = SamplingParams(temperature=0, max_tokens=10, ignore_eos=True)


def ids(deltas) -> list[int]:
    return [token for delta in deltas for token in delta.delta_token_ids]


def continuation(engine, prompt: list[int]) -> list[int]:
    """What the engine generates from scratch."""
    engine.add_request("fresh", prompt, GREEDY)
    out = []
    while engine.has_unfinished_requests():
        out += ids(engine.step())
    return out


def test_turns_equal_one_prompt(make_engine):
    engine = make_engine()
    history: list[int] = []
    with engine.open_stream() as stream:
        for turn in ([5, 6, 7], [8] * 50, [9, 10], list(range(2, 40)), [11]):
            for part in filter(None, (turn[:1], turn[1:])):
                stream.append(part)
            history += turn
            answer = ids(stream.generate(GREEDY))
            assert answer == continuation(engine, history)
            history += answer
        stats = stream.stats()
        assert stats.num_tokens == len(history)
        assert stats.num_visible_tokens == 28
        # The last token was sampled and not computed.
        assert stats.num_evicted_tokens == len(history) - 1 - 27
        assert stats.num_blocks <= 1 + 4
    assert engine.stats().num_used_blocks == 0


def test_a_turn_left_early_ends_where_it_is(make_engine):
    engine = make_engine()
    stream = engine.open_stream()
    stream.append([5, 6, 7])
    seen = []
    for delta in stream.generate(SamplingParams(temperature=0, max_tokens=None, ignore_eos=True)):
        seen += delta.delta_token_ids
        if len(seen) == 5:
            break
    stream.append([3, 4])
    assert ids(stream.generate(GREEDY)) == continuation(engine, [5, 6, 7, *seen, 3, 4])


def test_streams_and_requests_share_steps(make_engine):
    engine = make_engine()
    expected = continuation(engine, [20, 21])
    engine.add_request("other", [20, 21], GREEDY)
    with engine.open_stream() as stream:
        stream.append([5, 6, 7])
        answer = ids(stream.generate(GREEDY))
    assert answer == continuation(make_engine(), [5, 6, 7])
    # The stream's steps computed the request as well; nothing of it is lost.
    out = []
    while engine.has_unfinished_requests():
        out += ids(engine.step())
    assert out == expected


def test_own_sinks_and_window(make_engine):
    engine = make_engine()
    wide = make_engine(num_sink_tokens=10, window_size=16)
    prompt = [i % 90 + 2 for i in range(150)]
    with engine.open_stream(num_sink_tokens=10, window_size=16) as stream:
        stream.append(prompt)
        assert ids(stream.generate(GREEDY)) == continuation(wide, prompt)
    with pytest.raises(ValueError, match="num_sink_tokens must be less than"):
        engine.open_stream(num_sink_tokens=512)
    for window_size in (-1, 0, "3"):
        with pytest.raises(ValueError, match="window_size must be an int >= 1 or None"):
            engine.open_stream(window_size=window_size)
    with pytest.raises(ValueError, match="num_sink_tokens must be an int >= 0, got 4.0"):
        engine.open_stream(num_sink_tokens=4.0)


def test_own_sinks_leave_the_rest_of_the_trained_length(make_engine):
    engine = make_engine(window_size=None)
    assert engine.sink_window.window_size == 508
    stream = engine.open_stream(num_sink_tokens=100)
    stream.append([5] * 600)
    list(stream.generate(GREEDY))
    assert stream.stats().num_visible_tokens == 512


def test_misuse_is_explained(make_engine):
    engine = make_engine()
    stream = engine.open_stream()
    with pytest.raises(ValueError, match="the stream is empty"):
        stream.generate()
    stream.append("abc")
    with pytest.raises(ValueError, match="n must be 1"):
        stream.generate(SamplingParams(n=2))
    running = stream.generate(GREEDY)
    next(running)
    with pytest.raises(ValueError, match="the stream is generating"):
        stream.generate()
    stream.close()
    stream.close()
    assert list(running) == []  # the turn ended with the stream
    with pytest.raises(ValueError, match="closed"):
        stream.append("x")


def test_two_iterators_of_one_stream(make_engine):
    engine = make_engine()
    stream = engine.open_stream()
    stream.append([5, 6, 7])
    first, second = stream.generate(GREEDY), stream.generate(GREEDY)
    started = [next(first)]
    with pytest.raises(ValueError, match="the stream is generating"):
        next(second)
    assert ids([*started, *first]) == continuation(engine, [5, 6, 7])


def test_an_iterator_started_after_close(make_engine):
    stream = make_engine().open_stream()
    stream.append([5, 6, 7])
    late = stream.generate(GREEDY)
    stream.close()
    with pytest.raises(ValueError, match="closed"):
        next(late)


def test_a_slow_reader_holds_up_its_own_stream_only(make_engine):
    engine = make_engine()
    slow, quick = engine.open_stream(), engine.open_stream()
    slow.append([5, 6, 7])
    quick.append([8, 9])
    reading = slow.generate(SamplingParams(temperature=0, max_tokens=None, ignore_eos=True))
    seen = ids([next(reading)])
    for _ in range(5):
        list(quick.generate(GREEDY))
    assert slow.stats().num_tokens <= 3 + len(seen) + 1
    while len(seen) < 10:
        seen += ids([next(reading)])
    assert seen == continuation(engine, [5, 6, 7])


def test_a_request_may_be_named_like_a_stream(make_engine, monkeypatch):
    """Nobody reads the request's deltas, which must not hold up the stream."""
    monkeypatch.setattr(turns, "MAX_UNDELIVERED", 4)
    engine = make_engine()
    stream = engine.open_stream()
    stream.append([5, 6, 7])
    engine.add_request("stream-0", [5, 6, 7], SamplingParams(max_tokens=200, ignore_eos=True))
    assert len(ids(stream.generate(GREEDY))) == 10


def test_an_interrupted_prefill_can_be_taken_up_again(make_engine, monkeypatch):
    engine = make_engine(max_num_batched_tokens=256, window_size=64)
    prompt = [i % 90 + 2 for i in range(400)]
    expected = continuation(engine, prompt)
    stream = engine.open_stream()
    stream.append(prompt)
    execute, calls = engine.core.executor.execute, []

    def interrupted(output):
        calls.append(output)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return execute(output)

    monkeypatch.setattr(engine.core.executor, "execute", interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(stream.generate(GREEDY))
    assert ids(stream.generate(GREEDY)) == expected
    stream.close()
    assert engine.stats().num_used_blocks == 0


def test_text_that_continues_gets_no_special_tokens(make_engine, monkeypatch):
    engine = make_engine()
    encode = engine.tokenizer.encode

    def with_bos(text, *, continues=False):
        return [1] * (not continues) + encode(text, continues=True)

    monkeypatch.setattr(engine.tokenizer, "encode", with_bos)
    stream = engine.open_stream()
    stream.append("ab")
    stream.append("cd")
    answer = ids(stream.generate(GREEDY))
    assert answer == continuation(engine, with_bos("abcd"))


def test_generate_without_append_goes_on(make_engine):
    engine = make_engine()
    stream = engine.open_stream()
    stream.append([5, 6, 7])
    first = ids(stream.generate(GREEDY))
    second = ids(stream.generate(GREEDY))
    assert second == continuation(engine, [5, 6, 7, *first])
