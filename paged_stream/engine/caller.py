"""The way to an engine's thread for threads that wait for what it does."""

from __future__ import annotations

import queue
from collections.abc import Callable
from typing import TypeVar

from paged_stream.engine.calls import Call, Outcome
from paged_stream.engine.core import EngineCore
from paged_stream.engine.thread import EngineThread

T = TypeVar("T")


class Caller:
    """Has things done by the thread of an engine, one step of it included. An engine and its
    streams share one; when all of them are gone, the thread ends.

    Whoever waits may be interrupted, and does not hear then what has become of the call. It is done
    as a whole or not at all, before whatever is called for next.
    """

    def __init__(self, core: EngineCore) -> None:
        self._thread = EngineThread(core, steps=False)
        self._thread.start(self)

    def call(self, function: Callable[[], T]) -> T:
        """Run a function in the engine's thread, and wait for it.

        Raises:
            EngineStoppedError: the engine is closed.
            RuntimeError: it was made in another process, or this is the engine's own thread.
        """
        self._thread.check()
        answers: queue.SimpleQueue[Outcome[T]] = queue.SimpleQueue()
        stopped = self._thread.put(Call(function, answers.put))
        if stopped is not None and answers.empty():
            raise stopped
        outcome = answers.get()
        if outcome[1] is None:
            return outcome[0]
        try:
            raise outcome[1]
        finally:
            del outcome  # its traceback keeps this frame

    def stop(self) -> None:
        """As `EngineThread.stop`."""
        self._thread.stop()
