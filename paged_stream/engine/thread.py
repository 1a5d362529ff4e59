"""The thread that an engine computes in: only this thread touches the core.

Signals and asynchronous exceptions come to the threads of its users, so none of them comes between
two changes of the engine's state. What users want done is queued, and done between two steps, as a
whole. The thread knows the core, but not the engine in front, which may be collected while it runs.
"""

from __future__ import annotations

import atexit
import logging
import queue
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from paged_stream.engine.calls import Call, Outcome
from paged_stream.engine.core import EngineCore
from paged_stream.engine.lifetime import (
    EngineStoppedError,
    Errand,
    finish_before_exit,
    finish_for,
    sleep_at_exit,
)

logger = logging.getLogger(__name__)


class EngineThread:
    """Does what is asked for to a core, which belongs to it from now on, until it is stopped; then
    closes the core.

    Args:
        steps: whether it also steps on its own, as long as there is something to compute. Otherwise
            steps are asked for, too.
    """

    def __init__(self, core: EngineCore, *, steps: bool) -> None:
        self.is_stopping = False
        self._core = core
        self._steps = steps
        self._calls: queue.SimpleQueue[Any] = queue.SimpleQueue()  # of Call and Errand
        self._waiting: deque[Call[Any] | Errand] = deque()  # taken from there, not done yet
        self._is_over = False  # no call is answered that comes later
        self._has_ended = False
        self._closer = 0  # the thread that waits for the end
        self._close_error: BaseException | None = None
        self._abandoned: Errand | None = None
        self._thread = threading.Thread(target=self._run, name="paged_stream", daemon=True)

    def start(self, owner: object) -> None:
        """Begin; the end comes when ``owner`` is gone, if `stop` was not called before."""
        self._abandoned = Errand(owner, self._calls.put)
        self._abandoned.function = lambda core: self.stop_soon()
        if self._steps:
            self._core.errands.put = self._calls.put
            _stepping.add(self)
        try:
            self._thread.start()
        except BaseException:
            _stepping.discard(self)
            if self._thread.ident is None:
                self._core.close()
            raise

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    # For any thread

    def check(self) -> None:
        """Refuse what could never be answered.

        Raises:
            EngineStoppedError: the engine is closed or has failed.
            RuntimeError: it was made in another process, or this is the engine's own thread.
        """
        self._core.lifetime.check_process()
        self._check_thread()
        if self._is_over:
            raise self._core.lifetime.closed_error()

    def _check_thread(self) -> None:
        if threading.current_thread() is self._thread:
            raise RuntimeError(
                "the engine is within a step, or does something else that was asked for: what it "
                "calls meanwhile, as on_evict, must not use the engine, which would wait for itself"
            )

    def put(self, call: Call[Any]) -> EngineStoppedError | None:
        """Queue a call.

        Returns:
            What to raise, if there is no answer yet: then there may never be one.
        """
        self._calls.put(call)
        return self._core.lifetime.closed_error() if self._is_over else None

    def post(self, function: Callable[[], object]) -> None:
        """Have something done by the engine's thread if it is still there."""
        if self._core.lifetime.is_here:
            self._calls.put(Call(function, _log_failure))

    def stop_soon(self) -> None:
        """Let the thread end after its present step."""
        self.is_stopping = True
        self._calls.put(Call(lambda: None, _log_failure))

    def stop(self) -> None:
        """Let the thread end and wait for it; harmless twice, and in a forked child.

        Raises:
            RuntimeError: this is the engine's own thread.
        """
        if not self._core.lifetime.is_here:
            return
        self._check_thread()
        sleep_at_exit()  # nor be the closer in place of the thread that may
        self._closer = threading.get_ident()
        self.is_stopping = True
        ended: queue.SimpleQueue[Outcome[None]] = queue.SimpleQueue()
        self._calls.put(Call(lambda: None, ended.put))
        if not self._has_ended:
            ended.get()
        self._thread.join()
        sleep_at_exit()  # the caller would take the core for closed
        error, self._close_error = self._close_error, None
        if error is not None:
            raise error

    # In the thread itself

    def _run(self) -> None:
        is_idle = False
        try:
            while not self.is_stopping:
                # What was called for may be what another call waits for, so look once more.
                has_called = self._run_calls(wait=is_idle)
                has_stepped = self._steps and not self.is_stopping and self._advance()
                is_idle = not (self.is_stopping or has_stepped or has_called)
        except BaseException as error:
            self._core.lifetime.failure = error
            with suppress(MemoryError):
                logger.exception("the engine has failed")
        self._is_over = True
        try:
            finish_for(self._closer, self._core.close)
        except BaseException as error:
            self._close_error = error
        self._has_ended = True
        self._run_calls(wait=False)
        self._end_readers()
        _stepping.discard(self)

    @finish_before_exit
    def _advance(self) -> bool:
        return self._core.advance()

    def _run_calls(self, *, wait: bool) -> bool:
        """Do what was asked for and can be done; if nothing was asked for, wait when told to.

        Returns:
            Whether anything was done.
        """
        waiting = self._waiting
        if wait:
            try:
                waiting.append(self._calls.get(timeout=self._seconds_to_parking()))
            except queue.Empty:
                pass
        for _ in range(self._calls.qsize()):
            waiting.append(self._calls.get_nowait())
        count = len(waiting)
        for _ in range(count):
            if self._attempt(waiting[0]):  # which stays if that is what ends the thread
                waiting.popleft()
            else:
                waiting.rotate(-1)
        return len(waiting) < count

    def _attempt(self, call: Call[Any] | Errand) -> bool:
        """Do what was asked for, or say why not; False if it is too early for either."""
        if self._has_ended:
            if isinstance(call, Call):
                call.fail(self._core.lifetime.closed_error())
            return True
        if self.is_stopping:
            return False
        if isinstance(call, Errand):
            do = partial(self._core.errands.do, call, self._core)
            return finish_for(self._thread.ident or 0, do) is None
        return finish_for(call.asker, partial(self._call, call)) is not False

    def _call(self, call: Call[Any]) -> bool:
        self._core.errands.do_all(self._core)
        return call.attempt()

    def _seconds_to_parking(self) -> float | None:
        """How long the engine has nothing to do if nobody asks for anything; ``None``: for ever."""
        seconds = self._core.seconds_to_parking() if self._steps else None
        return None if seconds is None else min(seconds, threading.TIMEOUT_MAX)

    def _end_readers(self) -> None:
        """Tell those who read that nothing more will come."""


_stepping: set[EngineThread] = set()


def _stop_all() -> None:
    """An interpreter that ends during a step would crash."""
    for thread in list(_stepping):
        thread.stop()


atexit.register(_stop_all)


def _log_failure(outcome: Outcome[object]) -> None:
    error = outcome[1]
    if error is not None and not isinstance(error, EngineStoppedError):
        logger.error("the engine could not do what was asked for", exc_info=error)
