"""What happens in one stream, as numbered events, of which the last ones are remembered.

Whoever follows a stream gets every event in order, or is told which it has missed.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator
from threading import Lock
from typing import Any, TypeAlias

Event: TypeAlias = dict[str, Any]

_NUM_REMEMBERED = 1024


class StreamEvents:
    """The events of one stream. It belongs to the event loop in which it is made.

    Each has ``event_id``, a number that is one more than that of the event before, and ``type``.
    Ids begin with the time, so those of a stream that was restored are above those that it had.

    Args:
        num_remembered: how many events are kept.
    """

    def __init__(self, num_remembered: int = _NUM_REMEMBERED) -> None:
        self._loop = asyncio.get_running_loop()
        self._remembered: deque[Event] = deque(maxlen=num_remembered)
        self.last_id = time.time_ns() // 1_000_000
        self._first_id = self.last_id + 1
        self._news = asyncio.Event()
        self._num_followers = 0
        self._is_over = False
        self._evictions = Lock()
        self._evicted: tuple[int, int] | None = None

    def add(self, kind: str, **content: Any) -> Event:
        """Add an event, behind those of the tokens that left the window before."""
        self._tell_evicted()
        return self._add(kind, **content)

    def _add(self, kind: str, **content: Any) -> Event:
        self.last_id += 1
        event = {"event_id": self.last_id, "type": kind, **content}
        self._remembered.append(event)
        self._news.set()
        return event

    def on_evict(self, start: int, end: int) -> None:
        """Note that tokens left the window: an `OnEvict`, called in another thread. Positions that
        follow each other become one event, unless somebody waits for it."""
        with self._evictions:
            told_start = start if self._evicted is None else self._evicted[0]
            is_first, self._evicted = self._evicted is None, (told_start, end)
        if is_first and self._num_followers and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._tell_evicted)

    def _tell_evicted(self) -> None:
        with self._evictions:
            evicted, self._evicted = self._evicted, None
        if evicted is not None:
            self._add("evicted", start=evicted[0], end=evicted[1])

    async def follow(self, after: int | None = None) -> AsyncGenerator[Event, None]:
        """Yield what happens, until the stream or the service ends.

        Args:
            after: the id of an event: those behind it come first, as far as they are remembered. If
                not all of them are, the first event has the type ``"missed"``. By default only what
                happens from now on is told.
        """
        self._num_followers += 1  # from here on, `on_evict` does not leave it to others
        try:
            self._tell_evicted()
            next_id = self.last_id + 1 if after is None else after + 1
            while True:
                if next_id > self.last_id + 1:  # of another stream, perhaps of one before a crash
                    next_id = 0
                oldest = self._remembered[0]["event_id"] if self._remembered else self._first_id
                if next_id < oldest:
                    yield {"event_id": oldest - 1, "type": "missed"}
                    next_id = oldest
                elif next_id <= self.last_id:
                    yield self._remembered[next_id - oldest]
                    next_id += 1
                elif self._is_over:
                    return
                else:
                    self._news.clear()
                    await self._news.wait()
        finally:
            self._num_followers -= 1

    def end(self) -> None:
        """Let all who follow finish, after what has happened."""
        self._is_over = True
        self._news.set()
