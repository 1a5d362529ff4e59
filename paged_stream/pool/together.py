"""Many coroutines at once, and an end for the others when one fails."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")


async def together(
    function: Callable[[T], Coroutine[Any, Any, R]], items: Iterable[T], limit: int
) -> list[R]:
    """Call a function for each item, for up to ``limit`` of them at a time.

    Returns:
        The results, in the order of the items.

    Raises:
        Exception: the first that a call raises; the other calls are cancelled.
    """
    room = asyncio.Semaphore(limit)

    async def run(item: T) -> R:
        async with room:
            return await function(item)

    tasks = [asyncio.ensure_future(run(item)) for item in items]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
