"""Starting a coroutine from a finalizer, which runs at any moment and in any thread."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import Any

_running: set[asyncio.Task[None]] = set()  # an event loop itself does not keep its tasks


def run_soon(
    loop: asyncio.AbstractEventLoop, function: Callable[[], Coroutine[Any, Any, None]]
) -> None:
    """Run a coroutine function in an event loop, and do not wait for it. Does nothing if the loop
    is closed."""

    def start() -> None:
        task = loop.create_task(function())
        _running.add(task)
        task.add_done_callback(_running.discard)

    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(start)
