"""Engines and streams end when they are closed, once, and say so afterwards."""

from __future__ import annotations

import asyncio
import copy
import pickle
import threading
import weakref
from typing import Any

import pytest

from paged_stream import (
    LLM,
    AsyncLLMEngine,
    AsyncStream,
    EngineStoppedError,
    LLMEngine,
    SamplingParams,
    Stream,
)
from tests.engine.coroutines import ENDLESS, GREEDY, PROMPTS, in_loop, read, take
from tests.engine.public_uses import USES, failure, uses_of

SETTINGS: dict[str, Any] = {
    "window_size": 24,
    "block_size": 8,
    "dtype": "float32",
    "kv_cache_memory_bytes": 4 << 20,
}


@pytest.fixture
def llm(folder):
    return LLM(str(folder), **SETTINGS)


def parts_of(engine) -> list[weakref.ref]:
    """What takes memory: weights, K and V, and what holds them."""
    worker = engine.core.executor._worker
    parts = engine.core.executor, worker._model, worker._runner, worker._runner.kv_cache
    return [weakref.ref(part) for part in parts]


def test_close_frees_what_the_engine_holds(make_engine, tmp_path):
    engine = make_engine(parking_memory_bytes=0, parking_dir=tmp_path)
    streams = [engine.open_stream() for _ in range(3)]
    for stream in streams:
        stream.append(PROMPTS[8])
        list(stream.generate(GREEDY))
    streams[0].park()
    assert list(tmp_path.rglob("*.safetensors"))
    half_read = streams[1].generate(ENDLESS)
    next(half_read)
    parts = parts_of(engine)
    for _ in range(2):
        engine.close()
        assert not list(tmp_path.iterdir())
        assert [part() for part in parts] == [None] * 4
    for _ in range(2):
        streams[0].close()
    with pytest.raises(EngineStoppedError, match="the engine is closed"):
        next(half_read)


@pytest.mark.parametrize("runs_ahead", [False, True])
def test_with_closes(make_engine, llm, runs_ahead):
    engine = make_engine(num_decode_steps=4)
    engine.core.executor.runs_ahead = runs_ahead
    with engine as same:
        assert same is engine
        engine.add_request("a", [5, 6], ENDLESS)
        engine.step(), engine.step()
        parts = parts_of(engine)
    assert [part() for part in parts] == [None] * 4
    with llm as same:
        assert same is llm
        llm.generate([[5, 6]], GREEDY, use_tqdm=False)
        parts = parts_of(llm)
    assert [part() for part in parts] == [None] * 4


def test_another_engine_may_follow(make_engine):
    def answer():
        with make_engine() as engine, engine.open_stream() as stream:
            stream.append(PROMPTS[5])
            return [delta.delta_token_ids for delta in stream.generate(GREEDY)]

    assert answer() == answer()


@in_loop
async def test_the_asynchronous_engine_can_be_closed_twice(make):
    async with make() as engine:
        stream = await engine.open_stream()
        parts = await engine.thread.call(lambda: parts_of(engine))
        await engine.close()
        assert [part() for part in parts] == [None] * 4
        assert not engine.thread.is_alive
        await engine.close()
        await stream.close()


async def open_everything(folder, make_engine, make) -> dict:
    llm, engine, async_engine = LLM(str(folder), **SETTINGS), make_engine(), make()
    stream, async_stream = engine.open_stream(), await async_engine.open_stream()
    stream.append([5, 6, 7])
    await async_stream.append([5, 6, 7])
    return {
        LLM: llm,
        LLMEngine: engine,
        Stream: stream,
        AsyncLLMEngine: async_engine,
        AsyncStream: async_stream,
    }


@pytest.mark.parametrize("cls", USES, ids=lambda cls: cls.__name__)
@in_loop
async def test_every_use_after_the_end_of_the_engine_says_so(cls, folder, make_engine, make):
    things = await open_everything(folder, make_engine, make)
    for closed in (LLM, LLMEngine):
        things[closed].close()
    await things[AsyncLLMEngine].close()
    for name, use in uses_of(cls).items():
        error = await failure(use, things[cls])
        assert type(error) is EngineStoppedError, f"{name}: {error!r}"
        assert str(error) == "the engine is closed"


@pytest.mark.parametrize("cls", [Stream, AsyncStream], ids=lambda cls: cls.__name__)
@in_loop
async def test_every_use_of_a_closed_stream_says_so(cls, folder, make_engine, make):
    things = await open_everything(folder, make_engine, make)
    things[Stream].close()
    await things[AsyncStream].close()
    for name, use in uses_of(cls).items():
        error = await failure(use, things[cls])
        assert type(error) is ValueError, f"{name}: {error!r}"
        assert str(error) == "the stream is closed"


def test_closing_waits_for_the_step_of_another_thread(make_engine, monkeypatch):
    engine = make_engine()
    execute, is_within, may_go_on = (
        engine.core.executor.execute,
        threading.Event(),
        threading.Event(),
    )

    def slow(output):
        is_within.set()
        may_go_on.wait()
        return execute(output)

    monkeypatch.setattr(engine.core.executor, "execute", slow)
    engine.add_request("a", [5, 6], SamplingParams(temperature=0, max_tokens=1))
    deltas: list = []
    thread = threading.Thread(target=lambda: deltas.extend(engine.step()))
    thread.start()
    is_within.wait()
    closing = threading.Thread(target=engine.close)
    closing.start()
    may_go_on.set()
    thread.join(), closing.join()
    assert deltas[0].finished
    with pytest.raises(EngineStoppedError):
        engine.step()


# Several event loops


def test_one_event_loop_after_another(make):
    engine = make()
    stream = asyncio.run(engine.open_stream())
    asyncio.run(stream.append(PROMPTS[5]))
    first = asyncio.run(read(stream.generate(GREEDY)))
    again = asyncio.run(read(engine.generate(PROMPTS[5], GREEDY)))
    assert first == again
    assert asyncio.run(engine.stats()).num_streams == 1


def test_a_loop_that_is_closed_while_somebody_reads_holds_up_nobody(make):
    engine = make(max_unread=1)
    loop = asyncio.new_event_loop()
    deltas = engine.generate([5, 6], ENDLESS)
    loop.run_until_complete(take(deltas, 2))
    loop.close()
    expected = asyncio.run(read(engine.generate([7, 8], GREEDY)))

    async def until_freed():
        while (await engine.stats()).num_running:
            await read(engine.generate([7, 8], GREEDY))

    asyncio.run(until_freed())
    assert len(expected) == 10


def test_an_iterator_belongs_to_its_event_loop(make):
    engine = make()
    first, second = asyncio.new_event_loop(), asyncio.new_event_loop()
    deltas = engine.generate([5, 6], ENDLESS)
    first.run_until_complete(take(deltas, 2))
    with pytest.raises(RuntimeError, match="another event loop"):
        second.run_until_complete(take(deltas, 100))
    assert len(second.run_until_complete(read(engine.generate([5, 6], GREEDY)))) == 10
    first.close(), second.close()


# Looks


@in_loop
async def test_representations(folder, make_engine, make):
    things = await open_everything(folder, make_engine, make)
    of = f"of '{folder}'"
    assert repr(things[LLM]) == f"<LLM {of}: 4 sink tokens, window of 24, open streams: 0>"
    for cls in (LLMEngine, AsyncLLMEngine):
        text = f"<{cls.__name__} {of}: 4 sink tokens, window of 24, open streams: 1>"
        assert repr(things[cls]) == text
    stream = things[Stream]
    list(stream.generate(GREEDY))
    for parks, state in ((False, "idle"), (True, "parked")):
        if parks:
            stream.park()
        assert repr(stream) == f"<Stream 0 {of}: position 13, 12 tokens visible, {state}>"
    deltas = things[AsyncStream].generate(ENDLESS)
    await take(deltas, 1)
    assert repr(things[AsyncStream]).endswith(" tokens visible, generating>")
    stream.close()
    assert repr(stream) == f"<Stream 0 {of}: closed>"
    things[LLM].close(), things[LLMEngine].close()
    await things[AsyncLLMEngine].close()
    for cls in (LLM, LLMEngine, AsyncLLMEngine):
        assert repr(things[cls]) == f"<{cls.__name__} {of}: closed>"
    assert repr(things[AsyncStream]) == f"<AsyncStream 0 {of}: closed>"


@pytest.mark.parametrize("cls", USES, ids=lambda cls: cls.__name__)
def test_what_is_half_made_has_a_representation(cls):
    assert repr(object.__new__(cls)) == f"<{cls.__name__} that was not made>"


@pytest.mark.parametrize("cls", USES, ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("function", [pickle.dumps, copy.copy, copy.deepcopy])
@in_loop
async def test_nothing_can_be_pickled_or_copied(cls, function, folder, make_engine, make):
    things = await open_everything(folder, make_engine, make)
    advice = "use save and load_stream, or fork" if "Stream" in cls.__name__ else "in each process"
    with pytest.raises(TypeError, match=f"cannot be pickled or copied; .*{advice}"):
        function(things[cls])
