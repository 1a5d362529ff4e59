"""Several answers read as one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from paged_stream.engine.api import AsyncDeltas
from paged_stream.engine.outputs import RequestDelta


async def merged(sources: Sequence[AsyncDeltas]) -> AsyncGenerator[tuple[int, RequestDelta], None]:
    """Yield the deltas of all sources as they come, each with the number of its source. If one
    source raises, or nobody reads on, all of them are closed."""
    if len(sources) == 1:
        async with aclosing(sources[0]) as only:
            async for delta in only:
                yield 0, delta
        return
    waiting = {asyncio.ensure_future(_next(each)): n for n, each in enumerate(sources)}
    try:
        while waiting:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                number = waiting.pop(task)
                if (found := task.result()) is not None:
                    waiting[asyncio.ensure_future(_next(sources[number]))] = number
                    yield number, found
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        await asyncio.gather(*(each.aclose() for each in sources), return_exceptions=True)


async def _next(source: AsyncDeltas) -> RequestDelta | None:
    return await anext(source, None)
