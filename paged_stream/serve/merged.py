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
    # One task a source: waiting for all of them anew for each delta would cost as many steps.
    news: asyncio.Queue[_News] = asyncio.Queue(len(sources))
    readers = [asyncio.ensure_future(_read(n, each, news)) for n, each in enumerate(sources)]
    num_left = len(sources)
    try:
        while num_left:
            number, found = await news.get()
            if isinstance(found, Exception):
                raise found
            if found is None:
                num_left -= 1
            else:
                yield number, found
    finally:
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)
        await asyncio.gather(*(each.aclose() for each in sources), return_exceptions=True)


_News = tuple[int, RequestDelta | Exception | None]


async def _read(number: int, source: AsyncDeltas, news: asyncio.Queue[_News]) -> None:
    """Tell each delta of a source, and then how it has ended: ``None`` if well."""
    end: Exception | None = None
    try:
        async for delta in source:
            await news.put((number, delta))
    except Exception as error:
        end = error
    await news.put((number, end))
