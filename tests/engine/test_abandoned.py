"""What is collected unclosed is freed and complained of, at whatever moment that happens."""

from __future__ import annotations

import asyncio
import gc
import threading
import warnings
import weakref

import pytest

from paged_stream import AsyncLLMEngine, LLMEngine
from tests.engine.coroutines import ENDLESS, GREEDY, PROMPTS, continuation, in_loop, read, take


@pytest.fixture(autouse=True)
def nothing_of_other_tests():
    gc.collect()


def collect(things: list) -> list[str]:
    """Let go of all things; returns the warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ResourceWarning)
        things.clear()
        gc.collect()
    return [str(w.message) for w in caught if w.category is ResourceWarning]


def unclosed(messages: list[str]) -> list[str]:
    return [message for message in messages if message.startswith("unclosed stream")]


def opened(engine, prompt):
    stream = engine.open_stream()
    stream.append(prompt)
    list(stream.generate(GREEDY))
    return stream


def is_empty(engine) -> bool:
    engine.core.scheduler.check_integrity()
    stats = engine.stats()
    return stats.num_used_blocks == stats.num_streams == 0 and not engine.core.turns


def test_a_stream(make_engine, folder):
    engine = make_engine()
    things = [opened(engine, PROMPTS[5])]
    assert not is_empty(engine)
    assert collect(things) == [f"unclosed stream 0 of '{folder}': call its close(), or use `with`"]
    assert is_empty(engine)


def test_a_closed_stream_is_not_complained_of(make_engine):
    engine = make_engine()
    stream = opened(engine, PROMPTS[5])
    stream.close()
    things = [stream]
    del stream
    assert collect(things) == []
    with make_engine() as other:
        things = [opened(other, PROMPTS[5]), other]
    del other
    assert collect(things) == []


def test_a_parked_stream(make_engine, tmp_path):
    engine = make_engine(parking_memory_bytes=0, parking_dir=tmp_path)
    things = [opened(engine, PROMPTS[5])]
    things[0].park()
    assert list(tmp_path.rglob("*.safetensors"))
    assert len(collect(things)) == 1
    engine.step()
    assert not list(tmp_path.rglob("*.safetensors"))


def test_its_blocks_serve_those_who_wait(make_engine):
    # Room for one sequence.
    engine = make_engine(kv_cache_memory_bytes=40_000, enable_prefix_caching=False)
    things = [opened(engine, PROMPTS[5])]
    things += [things[0].generate(ENDLESS)]
    next(things[1])
    assert len(collect(things)) == 1
    assert len(continuation(engine, PROMPTS[5])) == 10
    assert is_empty(engine)


def test_a_half_read_iterator_that_is_collected_within_a_step(make_engine, monkeypatch):
    """As if the garbage collector had chosen that moment."""
    engine = make_engine()
    streams = [opened(engine, prompt) for prompt in PROMPTS[3:6]]
    iterators = [stream.generate(ENDLESS) for stream in streams]
    assert all(next(iterator) for iterator in iterators)
    expected = continuation(make_engine(), PROMPTS[8])
    schedule, update = engine.core.scheduler.schedule, engine.core.scheduler.update
    gone = []

    def scheduling(*args):
        if iterators:
            gone.extend(collect([iterators.pop()]))
        return schedule(*args)

    def updating(*args):
        if streams:
            gone.extend(collect([streams.pop()]))
        return update(*args)

    monkeypatch.setattr(engine.core.scheduler, "schedule", scheduling)
    monkeypatch.setattr(engine.core.scheduler, "update", updating)
    assert continuation(engine, PROMPTS[8]) == expected
    assert len(unclosed(gone)) == 3 and not streams and not iterators
    assert is_empty(engine)


def test_in_another_thread_while_the_engine_computes(make_engine, monkeypatch):
    engine = make_engine()
    things = [opened(engine, prompt) for prompt in PROMPTS[2:8]]
    expected = continuation(make_engine(), PROMPTS[8])
    execute, seen = engine.core.executor.execute, []

    def executing(output):
        thread = threading.Thread(target=lambda: seen.extend(collect(things)))
        thread.start()
        thread.join()
        return execute(output)

    monkeypatch.setattr(engine.core.executor, "execute", executing)
    assert continuation(engine, PROMPTS[8]) == expected
    assert len(unclosed(seen)) == 6
    assert is_empty(engine)


def test_leaving_an_iterator_ends_its_turn(make_engine):
    engine = make_engine()
    with opened(engine, PROMPTS[5]) as stream:
        for _ in stream.generate(ENDLESS):
            break
        assert not stream.is_generating
        list(stream.generate(GREEDY))


def test_an_engine(make_engine, tmp_path, folder):
    engine = make_engine(parking_memory_bytes=0, parking_dir=tmp_path)
    things = [engine, opened(engine, PROMPTS[5])]
    things[1].park()
    thread, memory = (
        engine._caller._thread,
        weakref.ref(engine.core.executor._worker._runner.kv_cache),
    )
    del engine
    assert list(tmp_path.iterdir())
    caught = collect(things)
    thread._thread.join()
    assert f"unclosed LLMEngine of '{folder}': call its close(), or use `with`" in caught
    assert len(caught) == 2  # and its stream
    assert memory() is None
    assert not list(tmp_path.iterdir())


def end_of(engine) -> tuple[threading.Thread, weakref.ref]:
    return engine.thread._thread, weakref.ref(engine.core.executor._worker._runner.kv_cache)


def test_an_asynchronous_engine(make_engine, folder):
    things = [AsyncLLMEngine(make_engine().config)]
    thread, memory = end_of(things[0])
    assert thread.is_alive()
    assert collect(things) == [
        f"unclosed AsyncLLMEngine of '{folder}': call its close(), or use `with`"
    ]
    thread.join()
    assert not thread.is_alive() and memory() is None


def test_an_asynchronous_engine_that_computes(make_engine):
    """For a reader whose event loop is gone."""
    things: list = [AsyncLLMEngine(make_engine().config), asyncio.new_event_loop()]
    thread, memory = end_of(things[0])
    things.append(things[0].generate([5, 6], ENDLESS))
    things[1].run_until_complete(take(things[2], 2))
    things[1].close()
    assert len([text for text in collect(things) if "AsyncLLMEngine" in text]) == 1
    thread.join()
    assert not thread.is_alive() and memory() is None


@in_loop
async def test_an_asynchronous_stream(make):
    engine = make()
    things = [await engine.open_stream()]
    await things[0].append(PROMPTS[5])
    await read(things[0].generate(GREEDY))
    assert (await engine.stats()).num_used_blocks > 0
    assert [text.split(" of ")[0] for text in collect(things)] == ["unclosed stream 0"]
    stats = await engine.stats()
    assert stats.num_used_blocks == stats.num_streams == 0 and not engine.streams.open


@in_loop
async def test_an_asynchronous_stream_wakes_the_engine_for_those_who_wait(make):
    engine = make(kv_cache_memory_bytes=40_000, enable_prefix_caching=False, max_unread=1)
    stream = await engine.open_stream()
    await stream.append(PROMPTS[5])
    things = [stream, stream.generate(ENDLESS)]
    del stream
    await take(things[1], 1)
    waiting = asyncio.create_task(read(engine.generate(PROMPTS[5], GREEDY)))
    while not (await engine.stats()).num_waiting:
        await asyncio.sleep(0)
    assert len(collect(things)) <= 1  # the event loop closes the iterator first
    assert len(await waiting) == 10


# Half-made objects


class Broken(Exception):
    pass


def breaks(*args, **kwargs):
    raise Broken


@pytest.mark.parametrize("place", ["Scheduler", "PromptEncoder", "EngineCore", "make_executor"])
def test_an_engine_that_cannot_be_made(make_engine, monkeypatch, place):
    from paged_stream.executor.local import LocalExecutor

    engine, closed = make_engine(), []
    config, thread = engine.config, engine._caller._thread._thread
    del engine
    gc.collect()
    thread.join()
    close = LocalExecutor.close
    monkeypatch.setattr(
        LocalExecutor, "close", lambda self: (closed.append(weakref.ref(self)), close(self))
    )
    monkeypatch.setattr(f"paged_stream.engine.loaded_engine.{place}", breaks)
    for cls in (LLMEngine, AsyncLLMEngine):
        threads = threading.active_count()
        with pytest.raises(Broken):
            cls(config)
        assert collect([]) == []
        assert threading.active_count() == threads
    assert len(closed) == (0 if place == "make_executor" else 2)
    assert all(executor() is None for executor in closed)


def test_an_asynchronous_engine_whose_thread_cannot_start(make_engine, monkeypatch):
    config = make_engine().config
    gc.collect()
    monkeypatch.setattr(threading.Thread, "start", breaks)
    with pytest.raises(Broken):
        AsyncLLMEngine(config)
    assert collect([]) == []


def test_a_stream_that_cannot_be_made(make_engine):
    engine = make_engine()
    with pytest.raises(ValueError):
        engine.open_stream(window_size=0)
    assert collect([]) == []
    assert is_empty(engine)
