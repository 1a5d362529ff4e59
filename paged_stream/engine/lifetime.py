"""How long an object may be used: until it is closed, and only by the process that made it.

Finalizers of objects that nobody closed may run at any moment and in any thread, within a step or
while locks are held. So they only write down what is to be done, and its owner does it.
"""

from __future__ import annotations

import atexit
import functools
import logging
import os
import sys
import threading
import time
import warnings
import weakref
from collections import deque
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any, Generic, NoReturn, ParamSpec, TypeVar

logger = logging.getLogger(__name__)
P = ParamSpec("P")
T = TypeVar("T")


class EngineStoppedError(RuntimeError):
    """The engine is closed or has failed; ``__cause__`` says why it failed."""


class StreamLostError(RuntimeError):
    """What was parked of a stream does not come back, so the stream is over; says why."""


# After one of these nobody knows how far a change of an engine's state had come: the engine is of
# no more use. Refusals, which are other errors, come before anything is changed.
BROKEN_OFF = MemoryError, AssertionError


class Lifetime:
    """Of one engine or pool, made in this process.

    Attributes:
        failure: what has ended it, unless that was `close`.

    Args:
        kind: what error messages call it.
    """

    def __init__(self, kind: str = "engine") -> None:
        self.pid = os.getpid()
        self.is_closed = False
        self.failure: BaseException | None = None
        self._kind = kind

    @property
    def is_here(self) -> bool:
        """Whether this process made it. A forked child has a copy without its threads."""
        return self.pid == _process.pid

    @property
    def is_over(self) -> bool:
        return self.is_closed or not self.is_here

    @property
    def state(self) -> str:
        """For a ``repr``."""
        if not self.is_here:
            return f"of process {self.pid}"
        return "closed" if self.is_closed else "open"

    def check_process(self) -> None:
        """Raise RuntimeError in a process that was forked later."""
        if not self.is_here:
            raise RuntimeError(
                f"this {self._kind} was made in another process (pid {self.pid}); "
                "make one after the fork"
            )

    def check(self) -> None:
        """Raise `EngineStoppedError` once it is closed, and what `check_process` does."""
        self.check_process()
        if self.is_closed:
            raise self.closed_error()

    def closed_error(self) -> EngineStoppedError:
        """For every use after the end; one for each, since raising an exception changes it."""
        if self.failure is None:
            return EngineStoppedError(f"the {self._kind} is closed")
        error = EngineStoppedError(f"the {self._kind} has failed: {self.failure!r}")
        error.__cause__ = self.failure
        return error


class Errand(weakref.ref[Any]):
    """What is to be done once an object is gone."""

    __slots__ = ("function",)
    function: Callable[[Any], object]


class Errands(Generic[T]):
    """What an engine is to do before anything else that it is asked for.

    Finalizers and threads that are interrupted leave errands. So each is left by a single call of a
    function that is written in C: it takes no lock, and cannot be done by half.

    Attributes:
        put: takes one, in any thread. It may be set to what also wakes the engine.
    """

    def __init__(self) -> None:
        self._items: deque[Callable[[T], object] | Errand] = deque()
        self._promised: dict[int, Errand] = {}
        self.put: Callable[[Callable[[T], object] | Errand], object] = self._items.append

    def when_gone(self, owner: object, function: Callable[[T], object]) -> Errand:
        """Have something done once ``owner`` is gone, unless `forget` is called before."""
        errand = Errand(owner, self.put)
        errand.function = function
        self._promised[id(errand)] = errand  # a reference that is gone itself tells nobody
        return errand

    def forget(self, errand: Errand) -> None:
        """Leave it undone. Harmless twice."""
        self._promised.pop(id(errand), None)

    def do(self, item: Callable[[T], object] | Errand, engine: T) -> None:
        """Do what `put` was given; in the engine's thread. What fails is logged, unless it was
        `BROKEN_OFF`, which is raised."""
        if isinstance(item, Errand):
            self.forget(item)
            item = item.function
        try:
            item(engine)
        except BROKEN_OFF:
            raise
        except Exception:
            logger.exception("the engine could not do what was asked for")

    def do_all(self, engine: T) -> None:
        """Do what has come; in the engine's thread."""
        while self._items:
            self.do(self._items.popleft(), engine)


def when_abandoned(
    owner: object, name: str, lifetime: Lifetime, release: Callable[[], object] = lambda: None
) -> weakref.finalize[..., object]:
    """Warn about an object that is collected while its ``lifetime`` lasts, and free what it held.

    Args:
        name: what the warning calls it.
        release: must not refer to ``owner``, take a lock or wait. An exception that comes from
            outside may end it; what must be done for certain is an errand.

    Returns:
        Whose ``detach`` is to be called when the object is closed before its lifetime ends.
    """
    finalizer = weakref.finalize(owner, _abandon, name, lifetime, release)
    finalizer.atexit = False  # all is released then, and nobody to blame
    return finalizer


def _abandon(name: str, lifetime: Lifetime, release: Callable[[], object]) -> None:
    if not lifetime.is_over:
        release()
        warnings.warn(f"unclosed {name}: call its close(), or use `with`", ResourceWarning, 2)


def refuse_pickling(what: str, instead: str) -> NoReturn:
    """For ``__reduce__``, which copies go through too."""
    raise TypeError(f"{what} cannot be pickled or copied; {instead}")


class _Process:
    """This process, as of its last fork: asking the system at every call would take longer."""

    def __init__(self) -> None:
        self.note()

    def note(self) -> None:
        self.pid = os.getpid()


class _Exit:
    """The end of the interpreter: ``thread`` is the one that ends it, once it does."""

    thread: int | None = None

    def forget(self) -> None:
        self.thread = None

    def is_closed_to(self, thread: int) -> bool:
        """Whether what that thread begins now must not be done any more."""
        return self.thread not in (None, thread)

    def wait(self) -> None:
        """Let those who are inside finish, and nobody else begin."""
        self.thread = threading.get_ident()
        while any(map(_is_inside, sys._current_frames().items())):
            time.sleep(0.001)


def finish_before_exit(function: Callable[P, T]) -> Callable[P, T]:
    """Keep the interpreter from ending while other threads are in a function of native code.

    A daemon thread that comes back from native code into an interpreter that is ending is unwound
    by force, which C++ and Rust answer with ``abort``. So what is being done at exit is waited for,
    and threads that begin anything later sleep until the process is gone.

    Who is inside is read off the threads' stacks. Nothing is counted, so an exception that comes
    between two bytecodes leaves no wrong count.
    """

    @functools.wraps(function)
    def finishing(*args: P.args, **kwargs: P.kwargs) -> T:
        if _exit.thread is not None:
            _stay_outside()
        return function(*args, **kwargs)

    return finishing


def finish_for(thread: int, function: Callable[[], T]) -> T | None:
    """As `finish_before_exit`, for a function that another thread waits for; it is left out if that
    thread must not begin anything any more."""
    return None if _exit.is_closed_to(thread) else function()


def sleep_at_exit() -> None:
    """Never come back if another thread ends the interpreter: what this one waited for may have
    been left out."""
    if _exit.is_closed_to(threading.get_ident()):
        _sleep_for_ever()


def _stay_outside() -> None:
    """Sleep for ever, unless this thread ends the interpreter or was inside before."""
    me = threading.get_ident()
    entries = [code for code in _codes_of(sys._getframe()) if code in (_FINISHING, _FINISHING_FOR)]
    if _exit.is_closed_to(me) and len(entries) == 1:
        _sleep_for_ever()


def _sleep_for_ever() -> None:
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()


def _is_inside(thread_frame: tuple[int, FrameType]) -> bool:
    thread, frame = thread_frame
    codes = _codes_of(frame)
    is_native = _FINISHING in codes or _FINISHING_FOR in codes
    return thread != _exit.thread and is_native and _SLEEPING not in codes


def _codes_of(frame: FrameType | None) -> list[CodeType]:
    codes = []
    while frame is not None:
        codes.append(frame.f_code)
        frame = frame.f_back
    return codes


_process = _Process()
_exit = _Exit()
_FINISHING = finish_before_exit(lambda: None).__code__
_FINISHING_FOR = finish_for.__code__
_SLEEPING = _sleep_for_ever.__code__  # of a thread that still decides, nobody knows yet
os.register_at_fork(after_in_child=_process.note)
os.register_at_fork(after_in_child=_exit.forget)
# The first finalizer registers what runs them all at exit, which fails if a thread makes another
# one meanwhile. What is registered later runs before.
weakref.finalize(_exit, _exit.forget).detach()
atexit.register(_exit.wait)
