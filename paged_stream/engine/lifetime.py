"""How long an object may be used: until it is closed, and only by the process that made it.

Finalizers of objects that nobody closed may run at any moment and in any thread, within a step or
while locks are held. So they only write down what is to be done, and its owner does it.
"""

from __future__ import annotations

import atexit
import os
import threading
import warnings
import weakref
from collections import Counter, deque
from collections.abc import Callable
from contextlib import ContextDecorator
from typing import Generic, NoReturn, TypeVar

T = TypeVar("T")


class EngineStoppedError(RuntimeError):
    """The engine is closed or has failed; ``__cause__`` says why it failed."""


class StreamLostError(RuntimeError):
    """What was parked of a stream does not come back, so the stream is over; says why."""


class Lifetime:
    """Of one engine or pool, made in this process.

    Args:
        kind: what error messages call it.
    """

    def __init__(self, kind: str = "engine") -> None:
        self.pid = os.getpid()
        self.is_closed = False
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
        """For every use after the end."""
        return EngineStoppedError(f"the {self._kind} is closed")


class Errands(Generic[T]):
    """What finalizers leave for an engine to do at its next call.

    ``wake`` tells an engine that waits that there is something; it must not take a lock.
    """

    def __init__(self) -> None:
        self._items: deque[T] = deque()
        self.wake: Callable[[], object] = lambda: None

    def __bool__(self) -> bool:
        return bool(self._items)

    def add(self, item: T) -> None:
        self._items.append(item)
        self.wake()

    def take(self) -> T:
        return self._items.popleft()


def when_abandoned(
    owner: object, name: str, lifetime: Lifetime, release: Callable[[], object]
) -> weakref.finalize[..., object]:
    """Warn about an object that is collected while its ``lifetime`` lasts, and free what it held.

    Args:
        name: what the warning calls it.
        release: must not refer to ``owner``, take a lock or wait.

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


class _FinishBeforeExit(ContextDecorator):
    """Keeps the interpreter from ending while other threads run native code.

    A daemon thread that comes back from native code into an interpreter that is ending is unwound
    by force, which C++ and Rust answer with ``abort``. So what is being done at exit is waited for,
    and threads that begin anything later sleep until the process is gone.
    """

    def __init__(self) -> None:
        self.after_fork()

    def after_fork(self) -> None:
        """Other threads are gone; locks may be held by them."""
        self._changed = threading.Condition()
        self._depths: Counter[int] = Counter()  # by thread
        self._ending: int | None = None  # the thread that ends the interpreter

    def __enter__(self) -> None:
        me = threading.get_ident()
        with self._changed:
            while self._ending not in (None, me) and not self._depths[me]:
                self._changed.wait()
            self._depths[me] += 1

    def __exit__(self, *exc_info: object) -> None:
        me = threading.get_ident()
        with self._changed:
            self._depths[me] -= 1
            if self._depths[me] <= 0:
                del self._depths[me]
            if self._ending is not None:
                self._changed.notify_all()

    def wait(self) -> None:
        """Let those who are inside finish, and nobody else begin."""
        with self._changed:
            self._ending = threading.get_ident()
            self._changed.wait_for(lambda: not self._depths.keys() - {self._ending})


_process = _Process()
finish_before_exit = _FinishBeforeExit()
os.register_at_fork(after_in_child=_process.note)
os.register_at_fork(after_in_child=finish_before_exit.after_fork)
atexit.register(finish_before_exit.wait)
