"""An event loop in a thread of its own, where a pool runs that any thread may use."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, Generic, TypeVar

from paged_stream.engine.api import AsyncDeltas, Deltas
from paged_stream.engine.calls import Outcome
from paged_stream.engine.lifetime import Lifetime
from paged_stream.engine.outputs import RequestDelta
from paged_stream.pool.errors import PoolError
from paged_stream.pool.run_soon import run_soon

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
        self._is_over = threading.Event()  # what is put from now on may be left undone
        # The thread refers to the loop only, so that an unclosed pool can be collected.
        self.thread = threading.Thread(
            target=_run, args=[self.loop, self._is_over], name="pool", daemon=True
        )
        self.thread.start()

    def check(self) -> None:
        """Refuse to be used.

        Raises:
            PoolError: the pool is closed.
            RuntimeError: it was made in another process.
        """
        self.lifetime.check_process()
        if self.lifetime.is_closed:
            raise _closed_error()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine of the pool, and wait for its result. If the wait is interrupted, the
        coroutine is cancelled and has ended when the exception goes on, so that what it did can be
        seen; another interrupt ends that wait, too.

        Raises:
            PoolError: the pool is closed, or was closed meanwhile.
            RuntimeError: this is the thread itself, which would wait for ever.
        """
        if threading.current_thread() is self.thread:
            coroutine.close()
            raise RuntimeError("on_evict is called in the pool's own thread and cannot wait for it")
        answers: queue.SimpleQueue[Outcome[T]] = queue.SimpleQueue()
        call = self._call(coroutine, answers.put)
        try:
            self.loop.call_soon_threadsafe(call.start)
            outcome = self._wait(answers)
        except BaseException as error:  # for example, Ctrl-C
            with suppress(RuntimeError):
                self.loop.call_soon_threadsafe(call.cancel)
                self._wait(answers)
            if isinstance(error, RuntimeError):  # the loop is closed, as the pool is
                self.check()
            raise
        if outcome[1] is None:
            return outcome[0]
        try:
            if isinstance(outcome[1], asyncio.CancelledError):
                raise _closed_error()
            raise outcome[1]
        finally:
            del outcome  # its traceback keeps this frame

    def submit(self, coroutine: Coroutine[Any, Any, object]) -> None:
        """Run a coroutine of the pool, and do not wait for it.

        Raises:
            PoolError: the pool is closed.
            RuntimeError: it was made in another process.
        """
        self.loop.call_soon_threadsafe(self._call(coroutine, lambda outcome: None).start)

    def _call(
        self, coroutine: Coroutine[Any, Any, T], answer: Callable[[Outcome[T]], object]
    ) -> _Call[T]:
        try:
            self.check()  # a forked child must not touch the loop
        except RuntimeError:
            coroutine.close()
            raise
        return _Call(coroutine, answer, self.check)

    def _wait(self, answers: queue.SimpleQueue[Outcome[T]]) -> Outcome[T]:
        if self._is_over.is_set() and answers.empty():
            raise _closed_error()
        return answers.get()

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
        """End what still runs, and the thread. Harmless twice."""
        run_soon(self.loop, end_loop)
        self.thread.join()


class _Call(Generic[T]):
    """A coroutine for the loop. Its methods are called there, one after the other.

    Args:
        answer: is told how it has ended, once or twice.
        check: refuses to begin.
    """

    def __init__(
        self,
        coroutine: Coroutine[Any, Any, T],
        answer: Callable[[Outcome[T]], object],
        check: Callable[[], None],
    ) -> None:
        self._coroutine = coroutine
        self._answer = answer
        self._check = check
        self._task: asyncio.Task[T] | None = None

    def start(self) -> None:
        try:
            self._check()
        except RuntimeError as error:
            self._coroutine.close()
            self._answer((None, error))
        else:
            self._task = asyncio.get_running_loop().create_task(self._coroutine)
            self._task.add_done_callback(self._tell)

    def cancel(self) -> None:
        """Let it end. The answer may have been given before, and be lost with an exception, so it
        is given again."""
        if self._task is None:  # interrupted before it could begin
            self._coroutine.close()
            self._answer((None, asyncio.CancelledError()))
        elif self._task.done():
            self._tell(self._task)
        else:
            self._task.cancel()

    def _tell(self, task: asyncio.Task[T]) -> None:
        if task.cancelled():
            self._answer((None, asyncio.CancelledError()))
        elif (error := task.exception()) is not None:
            self._answer((None, error))
        else:
            self._answer((task.result(), None))


class _DeltaReader:
    """Reads a generator of the pool on behalf of another thread. If that is interrupted twice, it
    does not wait until the wait for a delta has ended, and the generator cannot be closed
    before."""

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


async def end_loop() -> None:
    """Cancel all other tasks of this event loop, wait for them, and stop the loop."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=_CANCEL_SECONDS)
    asyncio.get_running_loop().stop()


def _run(loop: asyncio.AbstractEventLoop, is_over: threading.Event) -> None:
    try:
        loop.run_forever()
    finally:
        is_over.set()
        loop.run_until_complete(asyncio.sleep(0))  # refuses what was put before
        loop.close()


def _closed_error() -> PoolError:
    return PoolError("the pool is closed")
