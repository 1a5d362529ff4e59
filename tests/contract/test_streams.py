"""What every stream does."""

from __future__ import annotations

import copy
import pickle
import threading

import pytest

from paged_stream import EngineStoppedError, SamplingParams
from paged_stream.engine.outputs import VisibleText
from tests.contract.engines import ENGINES, EVERY_ENGINE, SETTINGS
from tests.contract.shared import (
    ENDLESS,
    GREEDY,
    MESSAGES,
    PROMPT,
    RANDOM,
    SHORT,
    ids,
    refuses,
    same_turn,
)


def test_streams_are_opened_as_they_are_asked_for(engine, reference):
    pin = [{"role": "system", "content": "be brief"}]
    for options in ({"pin": pin}, {"pin": "abc", "window_size": 12}, {"num_sink_tokens": 0}):
        with engine.open_stream(**options) as stream, reference.open_stream(**options) as twin:
            for each in (stream, twin):
                each.append(PROMPT)
            same_turn(stream, twin)
            assert stream.stats().window_start == twin.stats().window_start
    for options, message in (
        ({"pin": "abc", "num_sink_tokens": 3}, "pass one of them"),
        ({"window_size": 0}, "window_size must be"),
        ({"pin": []}, "empty"),
    ):
        with refuses(message):
            engine.open_stream(**options)
    assert engine.stats().num_streams == 0


def test_evictions_are_told_in_order(engine):
    told: list[tuple[int, int]] = []
    with engine.open_stream(on_evict=lambda *span: told.append(span)) as stream:
        stream.append(PROMPT)
        list(stream.generate(GREEDY))
        window_start, parent = stream.stats().window_start, len(told)
        assert told[0][0] == SETTINGS["num_sink_tokens"] and told[-1][1] == window_start
        assert all(before[1] == after[0] for before, after in zip(told, told[1:], strict=False))
        of_fork: list[tuple[int, int]] = []
        with stream.fork(on_evict=lambda *span: of_fork.append(span)) as fork:
            list(fork.generate(GREEDY))
            content, end = fork.save_bytes(), fork.stats().window_start
        assert of_fork[0][0] == window_start and of_fork[-1][1] == end
        assert len(told) == parent
    loaded: list[tuple[int, int]] = []
    with engine.load_stream(content, on_evict=lambda *span: loaded.append(span)) as stream:
        list(stream.generate(GREEDY))
    assert loaded[0][0] == end


def test_what_cannot_be_loaded_is_refused(engine, tmp_path, stream):
    (tmp_path / "garbage").write_bytes(b"garbage")
    for source, message in (
        (tmp_path / "absent", "there is no file"),
        (tmp_path / "garbage", "garbage is truncated or no stream"),
        (b"garbage", "the content is truncated or no stream"),
        (stream.save_bytes()[:-1], "the content is truncated or no stream"),
    ):
        with refuses(message):
            engine.load_stream(source)


def test_turns(stream, twin):
    assert stream.position == 0 and not stream.is_generating
    for prompt in (PROMPT, "and on", PROMPT * 3):
        stream.append(prompt)
        twin.append(prompt)
        assert stream.position == twin.position
        same_turn(stream, twin)
    deltas = list(stream.complete("what", GREEDY))
    assert ids(deltas) == ids(twin.complete("what", GREEDY))
    assert [delta.finished for delta in deltas] == [False] * (len(deltas) - 1) + [True]
    assert deltas[-1].finish_reason == "length"
    for messages in ("hello", [*MESSAGES, *MESSAGES]):
        assert ids(stream.chat(messages, GREEDY)) == ids(twin.chat(messages, GREEDY))
    assert list(stream.chat("hello"))[-1].finish_reason == "stop"  # at the end of its turn


def test_a_completed_prompt_is_an_appended_one(stream, twin):
    twin.append(PROMPT)
    assert ids(stream.complete(PROMPT, GREEDY)) == ids(twin.generate(GREEDY))


def test_scores_of_a_stream_are_those_of_its_text(engine, stream):
    whole = engine.score(PROMPT, use_tqdm=False)
    parts = stream.score(PROMPT[:20]) + stream.score(PROMPT[20:21]) + stream.score(PROMPT[21:])
    assert parts == pytest.approx(whole, abs=1e-5)
    assert stream.position == len(PROMPT)
    stream.rewind(40)
    again = stream.score(PROMPT[40:])
    assert again[0] is None and None not in again[1:]


def test_texts_that_follow_each_other_are_one_text(reference, stream):
    stream.append("hello wor")
    stream.score("ld, ")
    stream.append("and")
    assert stream.visible().token_ids == reference.encode("hello world, and")
    assert stream.visible().text == "hello world, and"


def test_what_the_next_token_will_see(engine, reference, stream):
    """Four sinks, and of a window of 24 what is before the next token."""
    assert stream.visible() == VisibleText(num_sink_tokens=0, runs=[])
    text = "abcdefghijklmnopqrstuvwxyz"
    stream.append(text)
    [whole] = stream.visible().runs
    assert (whole.start, whole.text, whole.missing) == (0, text, None)
    assert whole.token_ids == reference.encode(text)
    stream.append(text)
    told = [(0, "abcd", None), (29, text[3:], "evicted")]
    assert runs(stream) == told
    stream.cut(35, 40)  # jklmn
    told = [(0, "abcd", None), (33, "cdefghi", "evicted"), (40, "opqrstuvwxyz", "cut")]
    assert runs(stream) == told
    loaded, fork = engine.load_stream(stream.save_bytes()), stream.fork()
    for each in (loaded, fork):
        assert runs(each) == told
        each.append("ABCDEFGH")
        told_later = [
            (0, "abcd", None),
            (37, "ghi", "evicted"),
            (40, text[14:] + "ABCDEFGH", "cut"),
        ]
        assert runs(each) == told_later
        assert each.stats().num_sink_tokens == each.visible().num_sink_tokens == 4
        each.close()
    stream.cut(46, 51)
    told = [(38, "cdefghi", "evicted"), (45, "opqrst", "cut"), (51, "z", "cut")]
    assert runs(stream)[1:] == told


def runs(stream) -> list[tuple]:
    return [(run.start, run.text, run.missing) for run in stream.visible().runs]


def test_a_pin_is_what_every_conversation_begins_with(engine):
    pin = [{"role": "system", "content": "be brief"}]
    with engine.open_stream(pin=pin, window_size=100) as stream:
        assert stream.visible().text == "<system>be brief</s><user>"
        assert stream.stats().num_sink_tokens == stream.position
        list(stream.chat("hello", GREEDY))
        begin = "<system>be brief</s><user>hello</s><assistant>"
        assert stream.visible().text.startswith("<system>be brief</s><user>")
        stream.rewind(stream.position - GREEDY.max_tokens)
        assert stream.visible().text == begin


def test_a_turn_begins_with_its_first_item(stream):
    stream.append(PROMPT)
    for deltas in (stream.generate(GREEDY), stream.complete("a", GREEDY), stream.chat("a", GREEDY)):
        assert stream.position == len(PROMPT) and not stream.is_generating
        deltas.close()
    assert stream.position == len(PROMPT)


@pytest.mark.parametrize("start", ["generate", "complete", "chat"])
def test_during_a_turn(stream, start, tmp_path):
    stream.append(PROMPT)
    arguments = () if start == "generate" else ("hello",)
    deltas = getattr(stream, start)(*arguments, ENDLESS)
    seen = ids([next(deltas)])
    assert stream.is_generating
    for use in (
        lambda: next(stream.generate(SHORT)),
        lambda: next(stream.complete("a", SHORT)),
        lambda: next(stream.chat("a", SHORT)),
        lambda: stream.score("a"),
        lambda: stream.fork(),
        lambda: stream.cut(30, 40),
        lambda: stream.rewind(40),
        lambda: stream.park(),
        lambda: stream.save(tmp_path / "a"),
        lambda: stream.save_bytes(),
    ):
        with refuses("the stream is generating"):
            use()
    stream.append("queued")
    assert stream.stats().num_pending_tokens >= len("queued")
    assert stream.visible().num_sink_tokens == 4
    stream.end_turn()
    rest = list(deltas)
    assert not any(delta.finished for delta in rest)
    assert not stream.is_generating
    appended = len(PROMPT) + len("queued") + len(seen) + len(ids(rest))
    assert stream.position >= appended
    stream.end_turn()  # there is none
    assert len(ids(stream.generate(GREEDY))) == 10


def test_leaving_a_turn_ends_it(stream, twin):
    for each in (stream, twin):
        each.append(PROMPT)
    deltas = stream.generate(ENDLESS)
    got = ids([next(deltas), next(deltas)])
    deltas.close()
    assert not stream.is_generating
    generated = stream.stats().num_tokens - len(PROMPT)
    whole = ids(twin.generate(SamplingParams(temperature=0, max_tokens=400, ignore_eos=True)))
    assert generated >= len(got) and got == whole[: len(got)]
    # What was generated and not read is part of the stream.
    assert ids(stream.generate(GREEDY)) == whole[generated : generated + 10]


def test_what_is_refused_leaves_the_stream_as_it_was(stream):
    with refuses("the stream is empty; append"):
        next(stream.generate(SHORT))
    stream.append(PROMPT)
    several = SamplingParams(n=2)
    for use, message in (
        (lambda: next(stream.generate(several)), "n must be 1 for a stream"),
        (lambda: next(stream.complete("abc", several)), "n must be 1 for a stream"),
        (lambda: next(stream.chat("abc", several)), "n must be 1 for a stream"),
        (lambda: next(stream.generate({"n": 1})), "params must be SamplingParams"),
        (lambda: next(stream.complete("", SHORT)), "empty"),
        (lambda: next(stream.chat([], SHORT)), "messages must be"),
        (lambda: stream.append([10**6]), "prompt token ids must be in"),
        (lambda: stream.score(""), "empty"),
        (lambda: stream.cut(3, 2), "start and end must be a span"),
        (lambda: stream.cut("a", 2), "start must be an int"),
        (lambda: stream.rewind(10**6), "position must be at least"),
        (lambda: stream.rewind(0), "position must be at least"),
    ):
        with refuses(message):
            use()
        assert stream.position == len(PROMPT) and not stream.is_generating


def test_edits(stream, twin, tmp_path):
    for each in (stream, twin):
        each.append(PROMPT)
        list(each.generate(GREEDY))
        each.cut(45, 50)
    same_turn(stream, twin)
    for each in (stream, twin):
        each.rewind(each.position - 8)
    same_turn(stream, twin)
    stream.park()
    assert stream.stats().location in ("host", "disk")
    same_turn(stream, twin)
    with stream.fork() as fork, twin.fork() as other:
        fork.append("fork")
        other.append("fork")
        same_turn(fork, other)
    same_turn(stream, twin)


def test_a_saved_stream_goes_on_anywhere(engine, reference, stream, twin, tmp_path):
    """With the seeds of its own, which no other stream would draw from."""
    for each in (stream, twin):
        each.append(PROMPT)
        list(each.generate(RANDOM))
    stream.save(tmp_path / "theirs")
    twin.save(tmp_path / "reference")
    for path, content in (("theirs", stream.save_bytes()), ("reference", twin.save_bytes())):
        expected: list[list[int]] | None = None
        for loads in (engine, reference):
            for source in (tmp_path / path, content):
                with loads.load_stream(source) as loaded:
                    turns = [ids(loaded.generate(RANDOM)) for _ in range(3)]
                    assert loaded.position == len(PROMPT) + 40
                expected = turns if expected is None else expected
                assert turns == expected
                assert len({tuple(turn) for turn in turns}) == 3
    assert [ids(twin.generate(RANDOM)) for _ in range(3)] == expected


def test_forks_draw_on_their_own(stream):
    stream.append(PROMPT)
    with stream.fork() as first, stream.fork() as second:
        turns = [ids(each.generate(RANDOM)) for each in (stream, first, second)]
    assert len({tuple(turn) for turn in turns}) == 3


def test_more_than_may_queue_behind_a_turn(implementation, engine, stream, monkeypatch):
    monkeypatch.setattr("paged_stream.engine.stream_rules.MAX_QUEUED_TOKENS", 10)
    stream.append(PROMPT)
    deltas = stream.generate(ENDLESS)
    next(deltas)
    stream.append([20] * 8)
    if not implementation.is_async:
        with refuses("at most 10 tokens may queue"):
            stream.append([21] * 3)
        deltas.close()
        return
    waiting = stream.loop.submit(stream.inner.append([21] * 3))
    stream.append([22] * 2)  # for these there is room
    assert not waiting.done()
    position = stream.position
    deltas.close()
    waiting.result()
    assert stream.position >= position + 8 + 2 + 3


# The end


def uses(stream, tmp_path):
    yield lambda: stream.position
    yield lambda: stream.is_generating
    yield lambda: stream.append("a")
    yield lambda: next(stream.generate(SHORT))
    yield lambda: next(stream.complete("a", SHORT))
    yield lambda: next(stream.chat("a", SHORT))
    yield lambda: stream.score("a")
    yield lambda: stream.end_turn()
    yield lambda: stream.fork()
    yield lambda: stream.cut(30, 40)
    yield lambda: stream.rewind(40)
    yield lambda: stream.park()
    yield lambda: stream.save(tmp_path / "a")
    yield lambda: stream.save_bytes()
    yield lambda: stream.stats()
    yield lambda: stream.visible()
    yield lambda: stream.__enter__()


def test_a_closed_stream(engine, tmp_path):
    stream = engine.open_stream()
    stream.append(PROMPT)
    deltas = stream.generate(ENDLESS)
    next(deltas)
    for _ in range(2):
        stream.close()
    assert not any(delta.finished for delta in deltas)
    for use in uses(stream, tmp_path):
        with refuses("^the stream is closed$"):
            use()
    assert "closed" in repr(stream if not hasattr(stream, "loop") else stream.inner)
    assert engine.stats().num_streams == 0


def test_a_closed_engine(own_engine, tmp_path):
    engine = own_engine
    stream = engine.open_stream()
    stream.append(PROMPT)
    deltas = stream.generate(ENDLESS)
    next(deltas)
    for _ in range(2):
        engine.close()
    engine_uses = [
        lambda: engine.generate("a", SHORT, use_tqdm=False),
        lambda: engine.chat(MESSAGES, SHORT, use_tqdm=False),
        lambda: engine.score("a", use_tqdm=False),
        lambda: engine.score(["a", "b"], use_tqdm=False),
        lambda: engine.embed("a", use_tqdm=False),
        lambda: engine.get_tokenizer(),
        lambda: engine.open_stream(),
        lambda: engine.load_stream(tmp_path),
        lambda: engine.abort("a"),
        lambda: engine.stats(),
        lambda: engine.__enter__(),
        lambda: list(deltas),
    ]
    for use in (*engine_uses, *uses(stream, tmp_path)):
        with pytest.raises(EngineStoppedError, match="closed"):
            use()
    stream.close()


def test_neither_is_pickled_nor_copied(engine, stream):
    for thing in (engine, stream):
        thing = getattr(thing, "inner", thing) if hasattr(thing, "loop") else thing
        for function in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(TypeError, match="cannot be pickled or copied"):
                function(thing)


ASYNC_ENGINES = [each for each in EVERY_ENGINE if ENGINES[str(each.id)].is_async]


@pytest.mark.parametrize("implementation", ASYNC_ENGINES, indirect=True)
def test_cancelling_who_reads_ends_what_is_read(engine, stream):
    stream.append(PROMPT)
    begun = threading.Event()

    async def read(deltas):
        async for _ in deltas:
            begun.set()

    for start in (
        lambda: engine.inner.generate(PROMPT, ENDLESS),
        lambda: engine.inner.chat(MESSAGES, ENDLESS),
        lambda: stream.inner.generate(ENDLESS),
        lambda: stream.inner.complete("a", ENDLESS),
    ):
        begun.clear()
        reading = stream.loop.submit(read(start()))
        begun.wait()
        reading.cancel()
        while engine.stats().num_running or stream.is_generating:
            pass  # a replica's turn ends before the pool hears of it
    assert len(ids(stream.generate(GREEDY))) == 10


@pytest.mark.parametrize("implementation", ASYNC_ENGINES, indirect=True)
def test_what_is_appended_meanwhile_is_not_scored(engine, stream):
    prompt = PROMPT * 40
    scoring = stream.loop.submit(stream.inner.score(prompt))
    while not (stream.stats().num_pending_tokens or scoring.done()):
        pass
    stream.append("abc")
    assert scoring.result() == pytest.approx(engine.score(prompt, use_tqdm=False), abs=1e-5)
    assert stream.position == len(prompt) + 3
