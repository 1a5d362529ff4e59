"""Coroutines get what the engine would give them alone, and none can hold up or harm another."""

from __future__ import annotations

import asyncio
import functools
import gc
import queue
import random
import subprocess
import sys
import threading
import time
from collections import deque
from contextlib import aclosing

import pytest

from paged_stream import AsyncLLMEngine, EngineStoppedError, SamplingParams
from paged_stream.mailbox import Mailbox

GREEDY = SamplingParams(temperature=0, max_tokens=10, ignore_eos=True)
ENDLESS = SamplingParams(temperature=0, max_tokens=None, ignore_eos=True)
PROMPTS = [[i % 90 + 2 for i in range(start, start + 3 + 7 * start)] for start in range(12)]


def limited(test):
    """Run an asynchronous test; one that hangs fails."""

    @functools.wraps(test)
    def run(*args, **kwargs):
        asyncio.run(asyncio.wait_for(test(*args, **kwargs), 10))

    return run


@pytest.fixture
def make(make_engine):
    engines = []

    def make(*, max_unread=16, **settings):
        engines.append(AsyncLLMEngine(make_engine(**settings).config, max_unread=max_unread))
        return engines[-1]

    yield make
    for engine in engines:
        asyncio.run(asyncio.wait_for(engine.shutdown(), 10))


def ids(deltas) -> list[int]:
    return [token for delta in deltas for token in delta.delta_token_ids]


async def read(deltas) -> list[int]:
    return ids([delta async for delta in deltas])


async def take(deltas, count: int) -> list[int]:
    return ids([await anext(deltas) for _ in range(count)])


def continuation(engine, prompt, params=GREEDY) -> list[int]:
    """What a synchronous engine generates from scratch."""
    engine.add_request("fresh", prompt, params)
    out = []
    while engine.has_unfinished_requests():
        out += ids(engine.step())
    return out


async def settle(engine) -> None:
    """Let finalizers of iterators run, and the engine do what they asked for."""
    gc.collect()
    for _ in range(3):
        await asyncio.sleep(0)
    await engine.stats()


async def nothing_left(engine) -> bool:
    await settle(engine)
    stats = await engine.stats()
    engine.engine.scheduler.check_integrity()
    return (
        stats.num_used_blocks == stats.num_running == stats.num_waiting == stats.num_streams == 0
        and not engine.engine.core.turns
        and not engine.engine.core.requests
        and not engine._mailboxes
        and not engine._streams
    )


@limited
async def test_requests_and_streams_together_equal_each_alone(make, make_engine):
    alone = make_engine()
    want = [continuation(alone, prompt) for prompt in PROMPTS]

    async def stream_through(engine, prompt):
        async with await engine.open_stream() as stream:
            await stream.append(prompt[:2])
            await stream.append(prompt[2:])
            return await read(stream.generate(GREEDY))

    async with make() as engine:
        tasks = [read(engine.generate(prompt, GREEDY)) for prompt in PROMPTS]
        tasks += [stream_through(engine, prompt) for prompt in PROMPTS]
        assert await asyncio.gather(*tasks) == want * 2
        assert await nothing_left(engine)


@limited
async def test_several_completions(make, make_engine):
    params = SamplingParams(n=3, max_tokens=10, seed=5, ignore_eos=True)
    alone = make_engine()
    alone.add_request("r", "abc", params)
    want: dict[int, list[int]] = {0: [], 1: [], 2: []}
    while alone.has_unfinished_requests():
        for delta in alone.step():
            want[delta.index] += delta.delta_token_ids
    got: dict[int, list[int]] = {0: [], 1: [], 2: []}
    engine = make(max_unread=1)
    async for delta in engine.generate("abc", params):
        got[delta.index] += delta.delta_token_ids
    assert got == want and await nothing_left(engine)


def test_threads_with_loops_of_their_own(make, make_engine):
    alone, engine = make_engine(), make()
    want = [continuation(alone, prompt) for prompt in PROMPTS]
    results: queue.SimpleQueue = queue.SimpleQueue()

    async def work():
        async def one(prompt):
            async with await engine.open_stream() as stream:
                await stream.append(prompt)
                return await read(stream.generate(GREEDY))

        return await asyncio.gather(
            *(one(prompt) for prompt in PROMPTS),
            *(read(engine.generate(prompt, GREEDY)) for prompt in PROMPTS),
        )

    def run():
        try:
            results.put(asyncio.run(asyncio.wait_for(work(), 60)))
        except BaseException as error:
            results.put(error)

    threads = [threading.Thread(target=run, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    assert [results.get(timeout=60) for _ in threads] == [want * 2] * 4
    assert asyncio.run(nothing_left(engine))


@limited
async def test_a_stream_used_by_two_loops(make, make_engine):
    engine = make()
    stream = await engine.open_stream()
    await stream.append([5, 6, 7])

    def elsewhere():
        return asyncio.run(asyncio.wait_for(read(stream.generate(GREEDY)), 20))

    first = await asyncio.to_thread(elsewhere)
    second = await read(stream.generate(GREEDY))
    assert first + second == continuation(
        make_engine(), [5, 6, 7], SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
    )


# Leaving


@limited
async def test_leaving_frees_at_once(make):
    engine = make()
    prompt = list(range(2, 60))
    async for _ in engine.generate(prompt, ENDLESS):
        break
    assert await nothing_left(engine)

    async with aclosing(engine.generate(prompt, ENDLESS)) as deltas:
        await take(deltas, 3)
    assert await nothing_left(engine)

    deltas = engine.generate(prompt, ENDLESS)
    await take(deltas, 3)
    del deltas
    assert await nothing_left(engine)

    engine.generate(prompt, ENDLESS)  # never started
    deltas = engine.generate(prompt, ENDLESS)
    await deltas.aclose()
    assert await nothing_left(engine)

    task = asyncio.create_task(read(engine.generate(prompt, ENDLESS)))
    while not (await engine.stats()).num_running:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await nothing_left(engine)


@limited
async def test_cancelled_at_any_moment(make, make_engine):
    engine = make()
    stream = await engine.open_stream()
    await stream.append([5, 6, 7])
    random.seed(0)

    async def once():
        async with await engine.open_stream() as other:
            await other.append(list(range(2, 90)))
            async with await other.fork() as child:
                await read(child.generate(ENDLESS))

    for number in range(150):
        make_one = [
            lambda: read(engine.generate([5, 6, 7], ENDLESS)),
            lambda: read(stream.generate(ENDLESS)),
            once,
        ][number % 3]
        task = asyncio.create_task(make_one())
        for _ in range(random.randrange(12)):
            await asyncio.sleep(0.0003 if random.random() < 0.3 else 0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    await settle(engine)
    assert not engine.engine.core.turns
    saved = (await stream.stats()).num_tokens
    assert saved >= 3 and len(await read(stream.generate(GREEDY))) == 10
    await stream.close()
    assert await nothing_left(engine)


@limited
async def test_an_abort_comes_after_its_request(make):
    engine = make()
    held, gate = threading.Event(), threading.Event()
    blocker = asyncio.create_task(engine.call(lambda: (held.set(), gate.wait())))
    await asyncio.to_thread(held.wait)
    early = asyncio.create_task(read(engine.generate([5, 6], ENDLESS)))
    await asyncio.sleep(0)
    early.cancel()
    with pytest.raises(asyncio.CancelledError):
        await early
    gate.set()
    await blocker
    assert await nothing_left(engine)
    assert (await engine.stats()).num_steps == 0  # it was not even added


@limited
async def test_an_opened_stream_whose_opener_is_gone_is_closed(make):
    engine = make()
    opening, gate = threading.Event(), threading.Event()
    open_stream = engine.engine.open_stream

    def slowly(**settings):
        opening.set()
        gate.wait()
        return open_stream(**settings)

    engine.engine.open_stream = slowly
    task = asyncio.create_task(engine.open_stream())
    await asyncio.to_thread(opening.wait)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    gate.set()
    assert await nothing_left(engine)


def test_a_loop_that_ends_leaves_nothing(make):
    engine = make()

    async def leave_open():
        deltas = engine.generate([5, 6], ENDLESS)
        await take(deltas, 2)
        asyncio.create_task(read(engine.generate([5, 6, 7], ENDLESS)))
        await asyncio.sleep(0.005)
        return deltas

    left = asyncio.run(leave_open())  # closes what is open
    assert asyncio.run(nothing_left(engine))
    del left


@pytest.mark.parametrize("max_unread", [1, 1000])
def test_a_loop_closed_without_care_leaves_nothing(make, max_unread):
    engine = make(max_unread=max_unread)
    loop = asyncio.new_event_loop()
    deltas = engine.generate([5, 6], ENDLESS)
    loop.run_until_complete(asyncio.wait_for(take(deltas, 2), 10))
    while max_unread == 1 and not all(mailbox.is_full for mailbox in engine._mailboxes):
        time.sleep(0.001)
    loop.close()

    async def others_go_on():
        assert len(await read(engine.generate([5, 6, 7], GREEDY))) == 10
        return await nothing_left(engine)

    assert asyncio.run(asyncio.wait_for(others_go_on(), 20))


# Names


@limited
async def test_a_name_in_use_is_refused_and_its_request_unharmed(make, make_engine):
    engine = make()
    want = continuation(make_engine(), [5, 6, 7])
    first = engine.generate([5, 6, 7], GREEDY, request_id="name")
    got = await take(first, 1)
    if "name" in engine.engine.core.requests:  # or it has finished in the background
        with pytest.raises(ValueError, match="in use"):
            await read(engine.generate([8], ENDLESS, request_id="name"))
    assert got + await read(first) == want


@limited
async def test_a_name_can_be_used_again_before_the_first_is_read(make, make_engine):
    engine = make()
    first = engine.generate([5, 6, 7], GREEDY, request_id="name")
    await take(first, 1)
    while "name" in engine.engine.core.requests:
        await asyncio.sleep(0)
    second = engine.generate([8, 9], ENDLESS, request_id="name")
    got = await take(second, 1)
    await first.aclose()  # must not abort the second
    assert got + await take(second, 9) == continuation(make_engine(), [8, 9])
    await second.aclose()
    assert await nothing_left(engine)


@limited
async def test_misuse_is_explained_and_harms_nobody(make):
    engine = make()
    with pytest.raises(ValueError, match="params must be SamplingParams"):
        await read(engine.generate("a", {"n": 1}))
    with pytest.raises(ValueError, match="prompt must not be empty"):
        await read(engine.generate(""))
    stream = await engine.open_stream()
    with pytest.raises(ValueError, match="the stream is empty"):
        await read(stream.generate())
    with pytest.raises(ValueError, match="prompt must not be empty"):
        await stream.append("")
    with pytest.raises(ValueError, match="window_size must be"):
        await engine.open_stream(window_size=0)
    await stream.close()
    await stream.close()
    for call in (stream.append("a"), stream.fork(), stream.stats(), read(stream.generate())):
        with pytest.raises(ValueError, match="closed"):
            await call
    assert await nothing_left(engine)
    for max_unread in (0, -1, 1.5, "2", None, True):
        with pytest.raises(ValueError, match="max_unread must be an int >= 1"):
            AsyncLLMEngine(engine.engine.config, max_unread=max_unread)


# Slow readers


@limited
async def test_a_slow_reader_holds_up_only_what_it_reads(make, make_engine):
    engine = make(max_unread=4, max_num_seqs=2)
    stream = await engine.open_stream()
    await stream.append([5, 6, 7])
    slow, slower = stream.generate(ENDLESS), engine.generate([8, 9], ENDLESS)
    seen, seen_too = await take(slow, 1), await take(slower, 1)
    for _ in range(5):
        got = await asyncio.gather(*(read(engine.generate(p, GREEDY)) for p in PROMPTS))
        assert all(len(tokens) == 10 for tokens in got)
        assert all(len(mailbox._items) <= 4 for mailbox in engine._mailboxes)
    assert (await stream.stats()).num_tokens <= 3 + 1 + 4
    await stream.append([1, 2])  # does not wait for the reader
    assert seen + await take(slow, 9) == continuation(make_engine(), [5, 6, 7])
    assert seen_too + await take(slower, 9) == continuation(make_engine(), [8, 9])
    await slow.aclose()
    await slower.aclose()
    await stream.close()
    assert await nothing_left(engine)


@limited
async def test_an_engine_with_nothing_but_unread_turns_sleeps(make, monkeypatch):
    engine = make(max_unread=2)
    advance, calls = engine.engine.advance, []

    def counted():
        calls.append(time.monotonic())
        return advance()

    monkeypatch.setattr(engine.engine, "advance", counted)
    deltas = engine.generate([5, 6], ENDLESS)
    await take(deltas, 1)
    await asyncio.sleep(0.02)
    before = len(calls)
    await asyncio.sleep(0.05)
    assert len(calls) - before <= 1
    assert len(await take(deltas, 20)) == 20


@limited
async def test_a_box_filled_while_it_is_read_wakes_the_engine():
    woken = []
    mailbox = Mailbox(2, woken.append)

    class FilledMeanwhile(deque):
        def popleft(self):
            if len(self) == 1:
                self.append("second")  # the engine's thread; it finds the box full then
            return super().popleft()

    mailbox._items = FilledMeanwhile(["first"])
    assert await mailbox.get() == "first"
    assert woken


@pytest.mark.parametrize("max_unread", [1, 2, 3])
@limited
async def test_a_reader_that_keeps_up_is_never_forgotten(make, max_unread):
    engine = make(max_unread=max_unread)
    params = SamplingParams(temperature=0, max_tokens=600, ignore_eos=True)
    readers = [read(engine.generate([5 + i], params)) for i in range(3)]
    assert [len(tokens) for tokens in await asyncio.gather(*readers)] == [600] * 3


@limited
async def test_an_engine_with_nothing_to_do_parks(make):
    engine = make(park_after_seconds=0.02)
    stream = await engine.open_stream()
    await stream.append([5, 6, 7])
    await read(stream.generate(GREEDY))
    assert engine.engine.stats().num_parked_streams == 0
    while not engine.engine.stats().num_parked_streams:  # without a call that would wake it
        await asyncio.sleep(0.005)
    assert len(await read(stream.generate(GREEDY))) == 10


@limited
async def test_parking_at_once_does_not_keep_the_engine_busy(make, monkeypatch):
    engine = make(park_after_seconds=0)
    stream = await engine.open_stream()
    await stream.append([5, 6, 7])
    await read(stream.generate(GREEDY))
    advance, calls = engine.engine.advance, []
    monkeypatch.setattr(engine.engine, "advance", lambda: (calls.append(1), advance())[1])
    await asyncio.sleep(0.03)
    assert len(calls) <= 3
    assert (await engine.stats()).num_parked_streams == 1
    far = make(park_after_seconds=float("inf"))
    stream = await far.open_stream()
    await stream.append([5, 6, 7])
    assert len(await read(stream.generate(GREEDY))) == 10
    advance = far.engine.advance
    calls.clear()
    monkeypatch.setattr(far.engine, "advance", lambda: (calls.append(1), advance())[1])
    await asyncio.sleep(0.03)
    assert len(calls) <= 3


# Streams


@limited
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
    with pytest.raises(ValueError, match="truncated or no stream"):
        await engine.load_stream(tmp_path / "absent")


@limited
async def test_two_iterators_of_one_stream(make, make_engine):
    engine = make(max_unread=2)
    stream = await engine.open_stream()
    await stream.append([5, 6, 7])
    first = stream.generate(GREEDY)
    got = await take(first, 1)
    with pytest.raises(ValueError, match="generating already"):
        await read(stream.generate(GREEDY))
    for edit in (stream.fork(), stream.cut(0, 1), stream.park(), read(stream.chat("a"))):
        with pytest.raises(ValueError, match="the stream is generating"):
            await edit
    assert got + await read(first) == continuation(make_engine(), [5, 6, 7])


@limited
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


@limited
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


@limited
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


@limited
async def test_a_long_append_waits_and_others_go_on(make):
    engine = make()
    stream = await engine.open_stream()
    task = asyncio.create_task(stream.append([5] * 5000))
    got = await asyncio.gather(*(read(engine.generate(p, GREEDY)) for p in PROMPTS))
    assert all(len(tokens) == 10 for tokens in got)
    await task
    assert (await stream.stats()).num_pending_tokens <= 32 + 1
    task = asyncio.create_task(stream.append([5] * 50_000))
    await asyncio.sleep(0.002)
    await stream.close()
    with pytest.raises(ValueError, match="closed"):
        await task
    assert await nothing_left(engine)


@limited
async def test_closing_a_stream_ends_its_iterator(make):
    engine = make(max_unread=2)
    stream = await engine.open_stream()
    await stream.append([5, 6, 7])
    fast = asyncio.create_task(read(stream.generate(ENDLESS)))
    await asyncio.sleep(0.005)
    await stream.close()
    assert isinstance(await fast, list)
    stream = await engine.open_stream()
    await stream.append([5, 6, 7])
    slow = stream.generate(ENDLESS)
    await take(slow, 1)
    await stream.close()
    await read(slow)
    assert await nothing_left(engine)


@limited
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


@limited
async def test_a_condition_that_another_call_fulfils(make):
    engine, done = make(), []
    waiting = asyncio.create_task(engine.call(lambda: len(done), when=lambda: done))
    await settle(engine)
    chained = asyncio.create_task(engine.call(lambda: None, when=waiting.done))
    await engine.call(lambda: done.append(1))  # the engine is idle
    assert await waiting == 1
    await engine.stats()
    await chained
    cancelled = asyncio.create_task(engine.call(done.clear, when=lambda: not done))
    await settle(engine)
    cancelled.cancel()
    await settle(engine)
    assert not engine._waiting
    with pytest.raises(ZeroDivisionError):
        await engine.call(lambda: None, when=lambda: 1 / 0)


# The end


async def hear(awaitable) -> BaseException | None:
    try:
        await awaitable
    except Exception as error:
        return error
    return None


async def all_waiters(engine, stream, other):
    """Everything that can wait for the engine, each in a task."""
    long = asyncio.create_task(hear(other.append([5] * 100_000)))
    await settle(engine)
    waiting = [
        read(engine.generate([5, 6], ENDLESS)),
        read(stream.generate(ENDLESS)),
        engine.call(lambda: None, when=lambda: False),
        other.fork(),
        other.save("/nowhere/at/all"),
    ]
    return [long, *(asyncio.create_task(hear(wait)) for wait in waiting)]


async def everything_is_refused(engine, stream, cause):
    calls = [
        engine.stats(),
        engine.open_stream(),
        read(engine.generate("a")),
        read(stream.generate()),
        stream.append("a"),
        stream.stats(),
        stream.fork(),
        engine.shutdown("/nowhere"),
    ]
    for call in calls:
        with pytest.raises(EngineStoppedError) as caught:
            await call
        assert caught.value.__cause__ is cause
    await stream.close()
    assert await engine.shutdown() == {}


@limited
async def test_a_failure_reaches_everybody(make, monkeypatch):
    engine = make(max_unread=3)
    stream, other, third = [await engine.open_stream() for _ in range(3)]
    await stream.append([5, 6, 7])
    await third.append([5, 6, 7])
    unread = third.generate(ENDLESS)
    await take(unread, 1)
    tasks = await all_waiters(engine, stream, other)
    await asyncio.sleep(0.005)
    failure = OSError("the device is on fire")

    def execute(output):
        raise failure

    await engine.call(lambda: monkeypatch.setattr(engine.engine.executor, "execute", execute))
    errors = await asyncio.gather(*tasks)
    assert all(isinstance(error, EngineStoppedError) for error in errors), errors
    assert len({id(error) for error in errors}) == len(errors)
    assert all(error.__cause__ is failure for error in errors)
    with pytest.raises(EngineStoppedError, match="the device is on fire"):
        await read(unread)
    await everything_is_refused(engine, stream, failure)


@limited
async def test_a_failure_of_an_idle_engine_is_found_by_the_next_request(make, monkeypatch):
    engine = make()
    failure = MemoryError()

    def execute(output):
        raise failure

    monkeypatch.setattr(engine.engine.executor, "execute", execute)
    await engine.stats()
    with pytest.raises(EngineStoppedError):
        await read(engine.generate("a"))
    stream = engine.open_stream()
    with pytest.raises(EngineStoppedError):
        await stream


@limited
async def test_shutdown_reaches_everybody(make):
    engine = make(max_unread=3)
    stream, other = [await engine.open_stream() for _ in range(2)]
    await stream.append([5, 6, 7])
    tasks = await all_waiters(engine, stream, other)
    await asyncio.gather(engine.shutdown(), engine.shutdown())
    errors = await asyncio.gather(*tasks)
    assert all(isinstance(error, EngineStoppedError) for error in errors), errors
    assert not engine._thread.is_alive()
    await everything_is_refused(engine, stream, None)


def test_an_interpreter_may_end_without_a_shutdown(folder):
    code = f"""
import asyncio
from paged_stream import AsyncLLMEngine, EngineConfig, SamplingParams
engine = AsyncLLMEngine(EngineConfig(model={str(folder)!r}), max_unread=10**9)
deltas = engine.generate([5, 6], SamplingParams(max_tokens=None, ignore_eos=True))
asyncio.new_event_loop().run_until_complete(anext(deltas))
"""
    done = subprocess.run([sys.executable, "-c", code], timeout=60, capture_output=True)
    assert done.returncode == 0, done.stderr


@limited
async def test_shutdown_among_callers_of_several_threads(make):
    for _ in range(5):
        engine = make()

        async def work(engine=engine):
            with pytest.raises(EngineStoppedError):
                while True:
                    await engine.stats()
                    await read(engine.generate([5], GREEDY))
            return True

        async def many(work=work):
            return all(await asyncio.gather(*(work() for _ in range(5))))

        def run(many=many):
            return asyncio.run(asyncio.wait_for(many(), 20))

        threads = [asyncio.create_task(asyncio.to_thread(run)) for _ in range(3)]
        await asyncio.sleep(0.01)
        await engine.shutdown()
        assert all(await asyncio.gather(*threads))


@limited
async def test_saved_at_shutdown_and_continued(make, make_engine, tmp_path):
    engine = make()
    prompts = [PROMPTS[3], PROMPTS[8], PROMPTS[11]]
    streams = []
    for prompt in prompts:
        streams.append(await engine.open_stream())
        await streams[-1].append(prompt)
    first = [await read(stream.generate(GREEDY)) for stream in streams[:2]]
    parts: list[list[int]] = [[], []]

    async def interrupted(part, deltas):
        async for delta in deltas:
            part += delta.delta_token_ids

    tasks = [
        asyncio.create_task(interrupted(parts[0], streams[2].generate(ENDLESS))),
        asyncio.create_task(interrupted(parts[1], engine.generate("abc", ENDLESS))),
    ]
    await streams[1].append([20, 21])  # not computed yet
    empty, closed = await engine.open_stream(), await engine.open_stream()
    await closed.close()
    while len(parts[0]) < 5:
        await asyncio.sleep(0)
    saved = await engine.shutdown(tmp_path / "new" / "folder")
    for task in tasks:
        with pytest.raises(EngineStoppedError, match="shut down"):
            await task
    assert set(saved) == {*streams, empty}

    alone, again = make_engine(), make()
    loaded = [await again.load_stream(saved[stream]) for stream in streams]
    answers = [await read(stream.generate(GREEDY)) for stream in loaded]
    assert answers[0] == continuation(alone, prompts[0] + first[0])
    assert answers[1] == continuation(alone, prompts[1] + first[1] + [20, 21])
    done = (await loaded[2].stats()).num_tokens - 10 - len(prompts[2])
    assert done == len(parts[0])  # nothing that was computed is lost
    whole = SamplingParams(temperature=0, max_tokens=done + 10, ignore_eos=True)
    assert parts[0] + answers[2] == continuation(alone, prompts[2], whole)
    blank = await again.load_stream(saved[empty])
    await blank.append([5, 6, 7])
    assert await read(blank.generate(GREEDY)) == continuation(alone, [5, 6, 7])


@limited
async def test_a_shutdown_that_cannot_save_can_be_tried_again(make, tmp_path):
    engine = make()
    stream = await engine.open_stream()
    await stream.append([5, 6, 7])
    file = tmp_path / "file"
    file.write_text("in the way")
    for folder in (file, file / "below"):
        with pytest.raises(OSError):
            await engine.shutdown(folder)
    assert len(await read(stream.generate(GREEDY))) == 10
    assert list(await engine.shutdown(tmp_path)) == [stream]


@limited
async def test_nothing_is_accepted_between_saving_and_the_end(make, make_engine, tmp_path):
    engine = make()
    stream = await engine.open_stream()
    await stream.append([5, 6, 7])
    held, gate = threading.Event(), threading.Event()
    blocker = asyncio.create_task(engine.call(lambda: (held.set(), gate.wait())))
    await asyncio.to_thread(held.wait)
    ending = asyncio.create_task(engine.shutdown(tmp_path))
    await asyncio.sleep(0)
    late = [stream.append([8]), stream.stats(), read(stream.generate(GREEDY))]
    late = [asyncio.create_task(hear(call)) for call in late]
    await asyncio.sleep(0)
    gate.set()
    await blocker
    assert all(isinstance(error, EngineStoppedError) for error in await asyncio.gather(*late))
    loaded = make_engine().load_stream((await ending)[stream])
    assert loaded.position == 3
