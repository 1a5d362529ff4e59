"""A stream that is awaited does what the synchronous one does."""

from __future__ import annotations

import asyncio
import threading
from contextlib import aclosing

import pytest

from paged_stream.engine import stream_file
from tests.engine.coroutines import (
    ENDLESS,
    GREEDY,
    PROMPTS,
    continuation,
    held,
    ids,
    in_loop,
    nothing_left,
    read,
    settle,
    take,
    until,
)


@in_loop
async def test_a_stream_does_what_the_synchronous_one_does(make, make_engine, tmp_path):
    alone, engine = make_engine(), make()
    pin = [{"role": "system", "content": "be brief"}]
    prompt = [i % 90 + 2 for i in range(120)]
    want = alone.open_stream(pin=pin)
    got = await engine.open_stream(pin=pin)

    async def same_turn():
        assert await read(got.generate(GREEDY)) == ids(want.generate(GREEDY))
        theirs, mine = await got.stats(), want.stats()
        assert (theirs.num_tokens, theirs.window_start) == (mine.num_tokens, mine.window_start)

    want.append(prompt)
    await got.append(prompt)
    await same_turn()
    assert await read(got.chat("hello", GREEDY)) == ids(want.chat("hello", GREEDY))
    assert await read(got.chat("again", GREEDY)) == ids(want.chat("again", GREEDY))
    want.append("abc")
    await got.append("abc")
    position = want.position
    want.cut(position - 15, position - 10)
    await got.cut(position - 15, position - 10)
    await same_turn()
    want.rewind(want.position - 8)
    await got.rewind((await got.stats()).num_tokens - 8)
    await same_turn()
    want.park()
    await got.park()
    assert (await got.stats()).location == "host"
    want, got = want.fork(), await got.fork()
    await same_turn()
    want.save(tmp_path / "sync")
    await got.save(tmp_path / "async")
    want = alone.load_stream(tmp_path / "sync")
    got = await engine.load_stream(tmp_path / "async")
    await same_turn()
    with pytest.raises(ValueError, match="position must be"):
        await got.rewind(10**6)
    with pytest.raises(ValueError, match="there is no file"):
        await engine.load_stream(tmp_path / "absent")


@in_loop
async def test_two_iterators_of_one_stream(make, make_engine):
    engine = make(max_unread=2)
    stream = await engine.open_stream()
    await stream.append([5, 6, 7])
    first = stream.generate(GREEDY)
    got = await take(first, 1)
    with pytest.raises(ValueError, match="the stream is generating"):
        await read(stream.generate(GREEDY))
    for edit in (stream.fork(), stream.cut(0, 1), stream.park(), read(stream.chat("a"))):
        with pytest.raises(ValueError, match="the stream is generating"):
            await edit
    assert got + await read(first) == continuation(make_engine(), [5, 6, 7])


@in_loop
async def test_what_is_left_of_a_finished_turn_does_not_end_the_next(make):
    engine = make()
    stream = await engine.open_stream()
    await stream.append([5, 6, 7])
    first = stream.generate(GREEDY)
    async for delta in first:
        if delta.finished:
            break
    second = stream.generate(GREEDY)
    got = await take(second, 1)
    await first.aclose()
    assert len(got + await read(second)) == 10


@in_loop
async def test_appending_while_generating_queues_behind_the_turn(make, make_engine):
    engine = make(max_unread=2)
    stream = await engine.open_stream()
    await stream.append([5, 6, 7])
    turn = stream.generate(GREEDY)
    first = await take(turn, 1)
    await stream.append([20, 21])
    first += await read(turn)
    assert first == continuation(make_engine(), [5, 6, 7])
    second = await read(stream.generate(GREEDY))
    assert second == continuation(make_engine(), [5, 6, 7, *first, 20, 21])


@in_loop
async def test_a_turn_left_early_ends_where_it_is(make, make_engine):
    engine = make(max_unread=1)
    stream = await engine.open_stream()
    await stream.append([5, 6, 7])
    async with aclosing(stream.generate(ENDLESS)) as turn:
        seen = await take(turn, 5)
    # What the engine computed ahead is part of the stream.
    count = (await stream.stats()).num_tokens - 3
    assert 5 <= count <= 6
    want = continuation(make_engine(), [5, 6, 7])
    assert seen == want[:5]
    assert (await read(stream.generate(GREEDY)))[: 10 - count] == want[count:]


@in_loop
async def test_a_long_append_waits_and_others_go_on(make):
    engine = make()
    stream = await engine.open_stream()
    task = asyncio.create_task(stream.append([5] * 5000))
    got = await asyncio.gather(*(read(engine.generate(p, GREEDY)) for p in PROMPTS))
    assert all(len(tokens) == 10 for tokens in got)
    await task
    assert (await stream.stats()).num_pending_tokens <= 32 + 1
    task = asyncio.create_task(stream.append([5] * 5000))
    async with held(engine, when=lambda: stream.inner.is_behind):
        await asyncio.sleep(0)  # the task waits from here on
        await stream.close()
    with pytest.raises(ValueError, match="closed"):
        await task
    assert await nothing_left(engine)


@in_loop
async def test_closing_a_stream_ends_its_iterator(make):
    engine = make(max_unread=2)
    stream = await engine.open_stream()
    await stream.append([5, 6, 7])
    fast = asyncio.create_task(read(stream.generate(ENDLESS)))
    await until(engine, lambda: stream.inner.position > 10)
    await stream.close()
    assert len(await fast) > 10 - 3
    stream = await engine.open_stream()
    await stream.append([5, 6, 7])
    slow = stream.generate(ENDLESS)
    await take(slow, 1)
    await stream.close()
    await read(slow)
    assert await nothing_left(engine)


@in_loop
async def test_evictions_are_told_by_the_engines_thread(make, make_engine):
    alone, want, told, threads = make_engine(), [], [], set()

    def on_evict(first, end):
        told.append((first, end))
        threads.add(threading.current_thread().name)

    stream = alone.open_stream(on_evict=lambda first, end: want.append((first, end)))
    stream.append(list(range(2, 92)))
    list(stream.generate(GREEDY))
    async with await make().open_stream(on_evict=on_evict) as stream:
        await stream.append(list(range(2, 92)))
        await read(stream.generate(GREEDY))
        await stream.stats()
    # Steps may differ, since the append is computed in the background.
    assert [told[0][0], told[-1][1]] == [want[0][0], want[-1][1]]
    assert all(before[1] == after[0] for before, after in zip(told, told[1:], strict=False))
    assert threads == {"paged_stream"}


@in_loop
async def test_a_condition_that_another_call_fulfils(make):
    engine, done = make(), []
    waiting = asyncio.create_task(engine.thread.call(lambda: len(done), when=lambda: done))
    await settle(engine)
    chained = asyncio.create_task(engine.thread.call(lambda: None, when=waiting.done))
    await engine.thread.call(lambda: done.append(1))  # the engine is idle
    assert await waiting == 1
    await engine.stats()
    await chained
    cancelled = asyncio.create_task(engine.thread.call(done.clear, when=lambda: not done))
    await settle(engine)
    cancelled.cancel()
    await settle(engine)
    only_this = await engine.thread.call(lambda: len(engine.thread._waiting))
    assert only_this == 1
    with pytest.raises(ZeroDivisionError):
        await engine.thread.call(lambda: None, when=lambda: 1 / 0)


@in_loop
async def test_during_scoring_there_is_no_other_turn(make, make_engine):
    engine, prompt = make(), [i % 90 + 2 for i in range(200)]
    stream = await engine.open_stream()
    await stream.append([5, 6])
    await engine.thread.call(lambda: None, when=lambda: stream.inner.is_settled)
    async with held(engine):
        scoring = asyncio.create_task(stream.score(prompt))
        others = [
            asyncio.create_task(call)
            for call in (read(stream.generate(GREEDY)), stream.fork(), stream.park())
        ]
        await asyncio.sleep(0)  # all are asked for, in this order
    for other in others:
        with pytest.raises(ValueError, match="the stream is generating"):
            await other
    alone = make_engine().open_stream()
    alone.append([5, 6])
    assert await scoring == pytest.approx(alone.score(prompt), abs=1e-5)
    assert len(await read(stream.generate(GREEDY))) == 10


# Beside the engine's thread


@in_loop
async def test_the_engines_thread_neither_tokenizes_nor_reads_files(make, monkeypatch, tmp_path):
    engine, threads = make(), []
    encode = engine.tokenizer.encode

    def noted(text, **settings):
        threads.append(threading.current_thread().name)
        return encode(text, **settings)

    def read_noted(source):
        threads.append(threading.current_thread().name)
        return stream_file.read_stream(source)

    monkeypatch.setattr(engine.tokenizer, "encode", noted)
    monkeypatch.setattr("paged_stream.engine.intake.read_stream", read_noted)
    await read(engine.generate("abc", GREEDY))
    stream = await engine.open_stream(pin=[{"role": "system", "content": "be brief"}])
    for text in ("hello", "again"):
        await read(stream.chat(text, GREEDY))
    await stream.append("abc")
    await stream.save(tmp_path / "a.stream")
    await engine.load_stream(tmp_path / "a.stream")
    assert len(threads) >= 6
    assert not {"paged_stream", threading.current_thread().name} & set(threads)


@in_loop
async def test_what_was_tokenized_for_an_empty_stream_is_not_put_behind_another(make, monkeypatch):
    """The guess, in another thread, that the stream is empty may have become wrong."""
    engine = make()
    tokenizer = engine.tokenizer
    encode, both = tokenizer.encode, threading.Barrier(2)

    def with_start(text, continues=False):
        if not is_late:
            both.wait()
        return [1] * (not continues) + encode(text, continues=True)

    is_late = False
    monkeypatch.setattr(tokenizer, "encode", with_start)
    stream = await engine.open_stream()
    late = threading.Event()
    queue = stream.inner.queue

    def queue_late(prompt, addition):
        nonlocal is_late
        is_late = True  # from here on there is one thread only
        late.set()
        queue(prompt, addition)

    monkeypatch.setattr(stream.inner, "queue", queue_late)
    await asyncio.gather(stream.append("ab"), stream.append("cd"))
    assert late.is_set() and (await stream.stats()).num_tokens == 1 + 2 + 2


@in_loop
async def test_appending_without_end_waits_for_the_end_of_the_turn(make, make_engine, monkeypatch):
    monkeypatch.setattr("paged_stream.engine.stream_rules.MAX_QUEUED_TOKENS", 10)
    engine = make(max_unread=2)
    stream = await engine.open_stream()
    await stream.append([5, 6, 7])
    turn = stream.generate(GREEDY)
    first = await take(turn, 1)
    await stream.append([20] * 8)
    feeding = asyncio.create_task(stream.append([21] * 40))
    first += await take(turn, 5)
    assert not feeding.done()
    await stream.append([22] * 2)  # for these there is room
    first += await read(turn)
    await feeding
    second = await read(stream.generate(GREEDY))
    history = [5, 6, 7, *first, *[20] * 8, 22, 22, *[21] * 40]
    assert second == continuation(make_engine(), history)
    turn = stream.generate(ENDLESS)
    await take(turn, 1)
    feeding = asyncio.create_task(stream.append([21] * 11))
    await stream.close()
    with pytest.raises(ValueError, match="closed"):
        await feeding
    await turn.aclose()
    assert await nothing_left(engine)
