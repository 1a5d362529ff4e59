"""The thread that an engine of coroutines computes in, and the way in and out of it.

Only this thread touches the core, and only it completes what others wait for. What they want done
is queued and done between two steps, as a whole, so several threads and event loops may use one
engine. The thread knows the core, but not the `AsyncLLMEngine` in front, which may be collected
while it runs.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import queue
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from paged_stream.engine.api import AsyncDeltas
from paged_stream.engine.core import EngineCore
from paged_stream.engine.lifetime import EngineStoppedError
from paged_stream.engine.mailbox import Call, Mailbox

logger = logging.getLogger(__name__)
T = TypeVar("T")


class EngineThread:
    """Steps a core, which belongs to it from now on, until it is stopped; then closes it.

    Args:
        max_unread: deltas of one reader, after which the engine waits for it.
    """

    def __init__(self, core: EngineCore, max_unread: int) -> None:
        self.mailboxes: set[Mailbox] = set()  # for the thread itself only
        self.is_stopping = False
        self._core = core
        self._max_unread = max_unread
        self._calls: queue.SimpleQueue[Call[Any]] = queue.SimpleQueue()
        self._waiting: list[Call[Any]] = []
        self._lock = threading.Lock()  # nothing is queued once `_stopped` is set
        self._stopped: EngineStoppedError | None = None
        self._thread = threading.Thread(target=self._run, name="paged_stream", daemon=True)
        core.errands.wake = self._wake
        _running.add(self)
        try:
            self._thread.start()
        except BaseException:
            _running.discard(self)
            raise

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    # For any thread

    def check(self) -> None:
        """Raise what `call` would for an engine that cannot do anything any more."""
        self._core.lifetime.check_process()
        if self._stopped is not None:
            raise self._stopped_error()

    async def call(
        self,
        function: Callable[[], T],
        *,
        when: Callable[[], bool] | None = None,
        undo: Callable[[T], object] | None = None,
    ) -> T:
        """Run a function in the engine's thread between two steps.

        Args:
            when: run it as soon as this holds, which is tested there too; by default at once.
            undo: takes back what the function has returned, there too, if whoever waits for it is
                cancelled.

        Raises:
            EngineStoppedError: the engine is closed or has failed.
            RuntimeError: it was made in another process.
        """
        done: list[T] = []

        def run() -> T:
            done.append(function())
            return done[0]

        call = Call(run, when)
        self._core.lifetime.check_process()
        with self._lock:
            if self._stopped is not None:
                raise self._stopped_error()
            self._calls.put(call)
        try:
            return await asyncio.wrap_future(call.future)
        except asyncio.CancelledError:
            if undo is not None:
                take_back = undo
                self.post(lambda: [take_back(each) for each in done])  # it may run just now
            raise

    def post(self, function: Callable[[], object]) -> None:
        """Have something done by the engine's thread if it is still there."""
        if self._core.lifetime.is_here:
            call = Call(function)
            call.future.add_done_callback(_log_failure)
            self._calls.put(call)

    async def deltas(
        self,
        prepare: Callable[[], Awaitable[T]],
        start: Callable[[Mailbox, T], None],
        stop: Callable[[Mailbox], None],
        when: Callable[[], bool] | None = None,
    ) -> AsyncDeltas:
        """Yield what comes into a mailbox.

        Args:
            prepare: what can be done without the engine; its result is for ``start``.
            start: lets something fill the mailbox.
            stop: ends that. It is only called if ``start`` has succeeded and what it started has
                not ended; both are in the engine's thread, which keeps ``stop`` until then.
            when: start as soon as this holds, as in `call`.
        """
        self.check()
        mailbox = Mailbox(self._max_unread, self.post)
        prepared = await prepare()

        def enter() -> None:
            start(mailbox, prepared)
            if not mailbox.has_ended:
                self.mailboxes.add(mailbox)

        def leave() -> None:
            if mailbox in self.mailboxes:
                self.mailboxes.remove(mailbox)
                if not mailbox.has_ended:
                    stop(mailbox)

        mailbox.release = leave
        try:
            await self.call(enter, when=when)
            while (delta := await mailbox.get()) is not None:
                yield delta
                self._core.lifetime.check_process()
        finally:
            mailbox.is_left = True
            self.post(leave)  # behind `enter`, which may still be queued

    def stop_soon(self) -> None:
        """Let the thread end after its present step. Takes no lock, so finalizers may call it."""
        self.is_stopping = True
        self._wake()

    def stop(self) -> None:
        """Let the thread end and wait for it; harmless twice, and in a forked child."""
        if self._core.lifetime.is_here:
            self.stop_soon()
            self._thread.join()

    def _wake(self) -> None:
        self._calls.put(Call(lambda: None))

    def _stopped_error(self) -> EngineStoppedError:
        """One for each who waits: raising an exception changes it."""
        assert self._stopped is not None
        error = EngineStoppedError(*self._stopped.args)
        error.__cause__ = self._stopped.__cause__
        return error

    # In the thread itself

    def _run(self) -> None:
        reason, is_idle = self._core.lifetime.closed_error(), False
        try:
            while not self.is_stopping:
                # What was called for may be what another call waits for, so look once more.
                has_called = self._run_calls(wait=is_idle)
                is_idle = not (self.is_stopping or self._core.advance() or has_called)
        except BaseException as error:
            logger.exception("the engine has failed")
            reason = EngineStoppedError(f"the engine has failed: {error!r}")
            reason.__cause__ = error
        with self._lock:
            self._stopped = reason
        self._run_calls(wait=False)
        for mailbox in self.mailboxes:
            mailbox.end(self._stopped_error())
        self.mailboxes.clear()
        self._core.close()
        _running.discard(self)

    def _run_calls(self, *, wait: bool) -> bool:
        """Do what was asked for and can be done; if nothing was asked for, wait when told to.

        Returns:
            Whether anything was done.
        """
        calls, self._waiting = self._waiting, []
        if wait:
            try:
                calls.append(self._calls.get(timeout=self._seconds_to_parking()))
            except queue.Empty:
                pass
        calls += [self._calls.get_nowait() for _ in range(self._calls.qsize())]
        for call in calls:
            if self._stopped is not None:
                call.fail(self._stopped_error())
            elif self.is_stopping or not call.attempt():
                self._waiting.append(call)
        return len(self._waiting) < len(calls)

    def _seconds_to_parking(self) -> float | None:
        """How long the engine has nothing to do if nobody asks for anything; ``None``: for ever."""
        seconds = self._core.enter().seconds_to_parking()
        return None if seconds is None else min(seconds, threading.TIMEOUT_MAX)


_running: set[EngineThread] = set()


def _stop_all() -> None:
    """An interpreter that ends during a step would crash."""
    for thread in list(_running):
        thread.stop()


atexit.register(_stop_all)


def _log_failure(future: Future[Any]) -> None:
    if (error := future.exception()) and not isinstance(error, EngineStoppedError):
        logger.error("the engine could not do what was asked for", exc_info=error)
