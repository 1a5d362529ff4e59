"""An event loop in a thread of its own, where a pool runs that any thread may use."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import CancelledError, Future
from typing import Any, TypeVar

from paged_stream.engine.api import AsyncDeltas, Deltas
from paged_stream.engine.lifetime import Lifetime
from paged_stream.engine.outputs import RequestDelta
from paged_stream.pool.errors import PoolError

T = TypeVar("T")
_CANCEL_SECONDS = 60.0  # for what still runs when the pool is closed


class LoopThread:
    """Runs the coroutines of one pool until it is stopped.

    Args:
        lifetime: of the pool.
    """

    def __init__(self, lifetime: Lifetime) -> None:
        self.lifetime = lifetime
        self.loop = asyncio.new_event_loop()
        # The thread refers to the loop only, so that an unclosed pool can be collected.
        self.thread = threading.Thread(target=_run, args=[self.loop], name="pool", daemon=True)
        self.thread.start()

    def check(self) -> None:
        """Refuse to be used.

        Raises:
            PoolError: the pool is closed.
            RuntimeError: it was made in another process.
        """
        self.lifetime.check_process()
        if self.lifetime.is_closed:
            raise PoolError("the pool is closed")

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine of the pool, and wait for its result.

        Raises:
            PoolError: the pool is closed, or was closed meanwhile.
            RuntimeError: this is the thread itself, which would wait for ever.
        """
        if threading.current_thread() is self.thread:
            coroutine.close()
            raise RuntimeError("on_evict is called in the pool's own thread and cannot wait for it")
        future = self.submit(coroutine)
        try:
            return future.result()
        except CancelledError:
            raise PoolError("the pool is closed") from None
        except BaseException:
            future.cancel()  # for example, Ctrl-C has ended the wait
            raise

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Start a coroutine of the pool.

        Raises:
            PoolError: the pool is closed.
            RuntimeError: it was made in another process.
        """
        try:
            self.check()
        except RuntimeError:
            coroutine.close()
            raise
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop)

    def read(self, deltas: AsyncDeltas) -> Deltas:
        """Yield what a generator of the pool yields. Closing this one closes that one, too."""
        reader = _DeltaReader(deltas)
        try:
            while (delta := self.run(reader.next())) is not None:
                yield delta
        finally:
            if self.lifetime.is_over:
                pass
            elif threading.current_thread() is self.thread:  # the garbage collector ran there
                self.submit(reader.close())
            else:
                self.run(reader.close())

    def stop(self) -> None:
        """End what still runs, and the thread."""
        # Other threads may wait for coroutines that are not done yet.
        asyncio.run_coroutine_threadsafe(cancel_others(), self.loop).result()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()


class _DeltaReader:
    """Reads a generator of the pool on behalf of another thread. If that gives up waiting for a
    delta, the wait still takes a while to end, and the generator cannot be closed before."""

    def __init__(self, deltas: AsyncDeltas) -> None:
        self._deltas = deltas
        self._lock = asyncio.Lock()

    async def next(self) -> RequestDelta | None:
        """Wait for the next delta; ``None`` after the last."""
        async with self._lock:
            return await anext(self._deltas, None)

    async def close(self) -> None:
        async with self._lock:
            await self._deltas.aclose()


async def cancel_others() -> None:
    """Cancel all tasks of this event loop but the one that asks for it."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=_CANCEL_SECONDS)


def _run(loop: asyncio.AbstractEventLoop) -> None:
    try:
        loop.run_forever()
    finally:
        loop.close()
