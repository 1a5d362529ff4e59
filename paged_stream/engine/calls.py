"""What an engine's thread is asked for, and how whoever asks hears of the result.

A thread that asks may be interrupted between any two bytecodes. So nothing here is a lock that both
threads take: an answer is given by one call that neither waits nor fails.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeAlias, TypeVar

from paged_stream.engine.lifetime import BROKEN_OFF
from paged_stream.system.trace_context import current, within

T = TypeVar("T")

Outcome: TypeAlias = tuple[T, None] | tuple[None, BaseException]
"""What a function has returned, or what it has raised."""


class Call(Generic[T]):
    """A function for the engine's thread, to be run once ``when`` holds.

    Attributes:
        asker: the thread that asks.
        is_dropped: whether nobody wants it any more; it is left out unless it was run already.
    """

    def __init__(
        self,
        function: Callable[[], T],
        answer: Callable[[Outcome[T]], object],
        when: Callable[[], bool] | None = None,
    ) -> None:
        self.asker = threading.get_ident()
        self.is_dropped = False
        self._function = function
        self._answer = answer
        self._when = when
        self._trace = current()

    def attempt(self) -> bool:
        """Run the function, unless it is too early: then False.

        Raises:
            MemoryError, AssertionError: it was `BROKEN_OFF`, which was answered, too.
        """
        if self.is_dropped:
            return True
        try:
            if self._when is not None and not self._when():
                return False
            with within(self._trace):
                result = self._function()
            self._answer((result, None))
        except BaseException as error:
            self.fail(error)
            if isinstance(error, BROKEN_OFF):
                raise
        return True

    def fail(self, error: BaseException) -> None:
        """Answer that it was not run, or has failed."""
        self._answer((None, error))


class Reader:
    """Whoever reads what a turn or request adds. Once it is gone, nobody does."""

    __slots__ = ("__weakref__",)
