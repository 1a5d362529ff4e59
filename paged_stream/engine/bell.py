"""Wakes the coroutines of one event loop from another thread: once, however many have news."""

from __future__ import annotations

import asyncio


class Bell:
    """Sets the events of a loop. Any thread may ring, and no lock is needed.

    A call into a loop writes to a socket, and costs the ringing thread more than the news itself.
    After a step that has news for many readers, the loop gets one such call.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._events: set[asyncio.Event] = set()  # to be set
        self._num_rings = 0  # since the last call

    @property
    def is_heard(self) -> bool:
        """Whether the loop can still run anything."""
        return not self._loop.is_closed()

    def ring(self, event: asyncio.Event) -> None:
        """Let the loop set an event soon.

        Raises:
            RuntimeError: the loop is closed.
        """
        is_again = event in self._events
        self._events.add(event)
        self._num_rings += 1
        # The first one calls; looked at after the event is there, as the loop may answer meanwhile.
        is_first = len(self._events) <= 1
        # An interrupt may have kept the loop from answering. So each round calls once more.
        is_new_round = is_again and self._num_rings >= len(self._events)
        if is_first or is_new_round or not self.is_heard:
            self._num_rings = 0
            self._loop.call_soon_threadsafe(self._answer)

    def _answer(self) -> None:
        while self._events:
            self._events.pop().set()
