"""The thread of an engine of coroutines, and the way in and out of it.

It steps on its own. Several threads and event loops may use one engine.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeVar

from paged_stream.engine.api import AsyncDeltas
from paged_stream.engine.bell import Bell
from paged_stream.engine.calls import Call, Outcome, Reader
from paged_stream.engine.core import EngineCore
from paged_stream.engine.mailbox import Mailbox
from paged_stream.engine.thread import EngineThread

T = TypeVar("T")


class AsyncThread(EngineThread):
    """Steps a core and fills mailboxes.

    Args:
        max_unread: deltas of one reader, after which the engine waits for it.
    """

    def __init__(self, core: EngineCore, max_unread: int) -> None:
        super().__init__(core, steps=True)
        self.mailboxes: set[Mailbox] = set()  # for the thread itself only
        self._max_unread = max_unread
        self._bells: dict[asyncio.AbstractEventLoop, Bell] = {}  # replaced, never changed

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
                cancelled or interrupted.

        Raises:
            EngineStoppedError: the engine is closed or has failed.
            RuntimeError: it was made in another process, or this is the engine's own thread.
        """
        self.check()
        loop, done = asyncio.get_running_loop(), list[T]()
        future: asyncio.Future[T] = loop.create_future()

        def run() -> T:
            done.append(function())
            return done[0]

        call = Call(run, partial(_answer, loop, future), when)
        try:
            if (error := self.put(call)) is not None:
                loop.call_soon(_settle, future, (None, error))  # behind an answer that was given
            return await future
        except BaseException:
            call.is_dropped = True
            future.cancel()
            if undo is not None:
                take_back = undo
                self.post(lambda: [take_back(each) for each in done])  # it may run just now
            raise

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
        mailbox = Mailbox(self._max_unread, self._bell(), self.post)
        prepared = await prepare()

        def enter() -> None:
            if leaving() is None:
                return  # the reader was interrupted before
            start(mailbox, prepared)
            if not mailbox.has_ended:
                self.mailboxes.add(mailbox)

        def leave() -> None:
            if mailbox in self.mailboxes:
                self.mailboxes.remove(mailbox)
                if not mailbox.has_ended:
                    stop(mailbox)

        mailbox.release = leave
        reader = Reader()
        leaving = self._core.errands.when_gone(reader, lambda core: leave())
        try:
            await self.call(enter, when=when)
            while (delta := await mailbox.get()) is not None:
                yield delta
                self._core.lifetime.check_process()
        finally:
            mailbox.is_left = True
            del reader  # an exception may keep this frame

    def _bell(self) -> Bell:
        """The one of the running loop."""
        loop = asyncio.get_running_loop()
        if (bell := self._bells.get(loop)) is None:
            bell = Bell(loop)
            others = {each: its for each, its in self._bells.items() if not each.is_closed()}
            self._bells = {**others, loop: bell}
        return bell

    def _end_readers(self) -> None:
        for mailbox in self.mailboxes:
            mailbox.end(self._core.lifetime.closed_error())
        self.mailboxes.clear()


def _answer(loop: asyncio.AbstractEventLoop, future: asyncio.Future[T], found: Outcome[T]) -> None:
    """Wake whoever awaits; in the engine's thread."""
    try:
        loop.call_soon_threadsafe(_settle, future, found)
    except RuntimeError:
        pass  # the loop is closed, so nobody does


def _settle(future: asyncio.Future[T], outcome: Outcome[T]) -> None:
    if not future.done():
        if outcome[1] is None:
            future.set_result(outcome[0])
        else:
            future.set_exception(outcome[1])
