"""What tests of coroutines share."""

from __future__ import annotations

import asyncio
import functools
import gc
import threading
from contextlib import asynccontextmanager

from paged_stream import SamplingParams

GREEDY = SamplingParams(temperature=0, max_tokens=10, ignore_eos=True)
ENDLESS = SamplingParams(temperature=0, max_tokens=None, ignore_eos=True)
PROMPTS = [[i % 90 + 2 for i in range(start, start + 3 + 7 * start)] for start in range(12)]


def in_loop(test):
    """Run an asynchronous test in an event loop of its own."""

    @functools.wraps(test)
    def run(*args, **kwargs):
        asyncio.run(test(*args, **kwargs))

    return run


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


async def until(engine, condition) -> None:
    """Return once a condition holds, which the engine's thread looks at between two steps."""
    await engine.thread.call(lambda: None, when=condition)


@asynccontextmanager
async def held(engine, when=None):
    """The engine's thread does nothing meanwhile; it is caught as soon as ``when`` holds."""
    caught, gate = threading.Event(), threading.Event()
    holding = asyncio.create_task(
        engine.thread.call(lambda: (caught.set(), gate.wait()), when=when)
    )
    await asyncio.to_thread(caught.wait)
    try:
        yield
    finally:
        gate.set()
        await holding


async def comes_to_rest(engine, monkeypatch, most=20) -> bool:
    """Whether an engine with little to do sleeps before it has looked for work ``most`` times."""
    looks, rests, is_clear = 0, [], threading.Event()
    advance, seconds_to_parking = engine.core.advance, engine.thread._seconds_to_parking

    def counted():
        nonlocal looks
        looks += 1
        if looks > most:
            is_clear.set()
        return advance()

    def noted():  # asked before the engine waits for calls
        seconds = seconds_to_parking()
        if seconds != 0:
            rests.append(seconds)
            is_clear.set()
        return seconds

    monkeypatch.setattr(engine.core, "advance", counted)
    monkeypatch.setattr(engine.thread, "_seconds_to_parking", noted)
    await engine.stats()  # wakes it
    await asyncio.to_thread(is_clear.wait)
    return bool(rests)


async def settle(engine) -> None:
    """Let finalizers of iterators run, and the engine do what they asked for."""
    gc.collect()
    for _ in range(3):
        await asyncio.sleep(0)
    await engine.stats()


async def nothing_left(engine) -> bool:
    await settle(engine)
    stats = await engine.stats()

    def is_empty() -> bool:  # in the engine's thread: after an answer, it is not done yet
        engine.core.scheduler.check_integrity()
        return not (engine.core.turns or engine.core.turns.requests or engine.thread.mailboxes)

    return (
        stats.num_used_blocks == stats.num_running == stats.num_waiting == stats.num_streams == 0
        and await engine.thread.call(is_empty)
        and not engine.streams.open
    )
