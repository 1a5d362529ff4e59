"""What tests of coroutines share."""

from __future__ import annotations

import asyncio
import functools
import gc

from paged_stream import SamplingParams

GREEDY = SamplingParams(temperature=0, max_tokens=10, ignore_eos=True)
ENDLESS = SamplingParams(temperature=0, max_tokens=None, ignore_eos=True)
PROMPTS = [[i % 90 + 2 for i in range(start, start + 3 + 7 * start)] for start in range(12)]


def limited(test):
    """Run an asynchronous test; one that hangs fails."""

    @functools.wraps(test)
    def run(*args, **kwargs):
        asyncio.run(asyncio.wait_for(test(*args, **kwargs), 10))

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
        and not engine.streams
    )
