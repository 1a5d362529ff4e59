"""Doing something to its end, also if the task that waits for it is cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


async def uninterrupted(coroutine: Coroutine[Any, Any, T]) -> T:
    """Await a coroutine. If the waiting task is cancelled, the coroutine still runs to its end, and
    only then is the cancellation passed on, whatever the coroutine has raised.

    A replica cannot be told to stop what it is doing, and the pool must know what it has done.
    """
    task, is_cancelled = asyncio.ensure_future(coroutine), False
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():
                raise
            is_cancelled = True
        except Exception:
            break  # raised below
    if is_cancelled:
        raise asyncio.CancelledError from task.exception()
    return task.result()
