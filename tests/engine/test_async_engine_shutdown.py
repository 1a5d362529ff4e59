"""Whoever waits hears of the end, and nothing is lost on the way."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading

import pytest

from paged_stream import EngineStoppedError, SamplingParams
from tests.engine.coroutines import (
    ENDLESS,
    GREEDY,
    PROMPTS,
    continuation,
    held,
    in_loop,
    read,
    settle,
    take,
)


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
        engine.thread.call(lambda: None, when=lambda: False),
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


@in_loop
async def test_a_failure_reaches_everybody(make, monkeypatch):
    engine = make(max_unread=3)
    stream, other, third = [await engine.open_stream() for _ in range(3)]
    await stream.append([5, 6, 7])
    await third.append([5, 6, 7])
    unread = third.generate(ENDLESS)
    await take(unread, 1)
    tasks = await all_waiters(engine, stream, other)
    await settle(engine)
    failure = OSError("the device is on fire")

    def execute(output):
        raise failure

    await engine.thread.call(lambda: monkeypatch.setattr(engine.core.executor, "execute", execute))
    errors = await asyncio.gather(*tasks)
    assert all(isinstance(error, EngineStoppedError) for error in errors), errors
    assert len({id(error) for error in errors}) == len(errors)
    assert all(error.__cause__ is failure for error in errors)
    with pytest.raises(EngineStoppedError, match="the device is on fire"):
        await read(unread)
    await everything_is_refused(engine, stream, failure)


@in_loop
async def test_a_failure_of_an_idle_engine_is_found_by_the_next_request(make, monkeypatch):
    engine = make()
    failure = MemoryError()

    def execute(output):
        raise failure

    monkeypatch.setattr(engine.core.executor, "execute", execute)
    await engine.stats()
    with pytest.raises(EngineStoppedError):
        await read(engine.generate("a"))
    stream = engine.open_stream()
    with pytest.raises(EngineStoppedError):
        await stream


@in_loop
async def test_shutdown_reaches_everybody(make):
    engine = make(max_unread=3)
    stream, other = [await engine.open_stream() for _ in range(2)]
    await stream.append([5, 6, 7])
    tasks = await all_waiters(engine, stream, other)
    await asyncio.gather(engine.shutdown(), engine.shutdown())
    errors = await asyncio.gather(*tasks)
    assert all(isinstance(error, EngineStoppedError) for error in errors), errors
    assert not engine.thread.is_alive
    await everything_is_refused(engine, stream, None)


def test_an_interpreter_may_end_without_a_shutdown(folder):
    code = f"""
import asyncio
from paged_stream import AsyncLLMEngine, EngineConfig, SamplingParams
engine = AsyncLLMEngine(EngineConfig(model={str(folder)!r}), max_unread=10**9)
deltas = engine.generate([5, 6], SamplingParams(max_tokens=None, ignore_eos=True))
asyncio.new_event_loop().run_until_complete(anext(deltas))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True)
    assert done.returncode == 0, done.stderr


@in_loop
async def test_shutdown_among_callers_of_several_threads(make):
    for _ in range(5):
        engine, answered = make(), threading.Semaphore(0)

        async def work(engine=engine, answered=answered):
            with pytest.raises(EngineStoppedError):
                while True:
                    await engine.stats()
                    await read(engine.generate([5], GREEDY))
                    answered.release()
            return True

        async def many(work=work):
            return all(await asyncio.gather(*(work() for _ in range(5))))

        def run(many=many):
            return asyncio.run(many())

        threads = [asyncio.create_task(asyncio.to_thread(run)) for _ in range(3)]
        for _ in range(20):
            await asyncio.to_thread(answered.acquire)
        await engine.shutdown()
        assert all(await asyncio.gather(*threads))


@in_loop
async def test_saved_at_shutdown_and_continued(make, make_engine, tmp_path):
    engine = make()
    prompts = [PROMPTS[3], PROMPTS[8], PROMPTS[11]]
    streams = []
    for prompt in prompts:
        streams.append(await engine.open_stream())
        await streams[-1].append(prompt)
    first = [await read(stream.generate(GREEDY)) for stream in streams[:2]]
    parts: list[list[int]] = [[], []]
    has_begun = asyncio.Event()

    async def interrupted(part, deltas):
        async for delta in deltas:
            part += delta.delta_token_ids
            if len(parts[0]) >= 5:
                has_begun.set()

    tasks = [
        asyncio.create_task(interrupted(parts[0], streams[2].generate(ENDLESS))),
        asyncio.create_task(interrupted(parts[1], engine.generate("abc", ENDLESS))),
    ]
    await streams[1].append([20, 21])  # not computed yet
    empty, closed = await engine.open_stream(), await engine.open_stream()
    await closed.close()
    await has_begun.wait()
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
    # Saved in the same folder once more, they lie beside what was saved before.
    later = await again.shutdown(tmp_path / "new" / "folder")
    assert len(later) == 4 and not set(later.values()) & set(saved.values())
    assert {*later.values(), *saved.values()} == {*(tmp_path / "new" / "folder").iterdir()}


@in_loop
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


@in_loop
async def test_nothing_is_accepted_between_saving_and_the_end(make, make_engine, tmp_path):
    engine = make()
    stream = await engine.open_stream()
    await stream.append([5, 6, 7])
    async with held(engine):
        ending = asyncio.create_task(engine.shutdown(tmp_path))
        await asyncio.sleep(0)
        late = [stream.append([8]), stream.stats(), read(stream.generate(GREEDY))]
        late = [asyncio.create_task(hear(call)) for call in late]
        await asyncio.sleep(0)
    assert all(isinstance(error, EngineStoppedError) for error in await asyncio.gather(*late))
    loaded = make_engine().load_stream((await ending)[stream])
    assert loaded.position == 3
