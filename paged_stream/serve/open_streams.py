"""The streams that clients of a service have opened, by id, and which of them were forgotten."""

from __future__ import annotations

import time
import uuid
from collections import OrderedDict
from collections.abc import Callable

from paged_stream.engine.api import AsyncStreamApi


class OpenStreams:
    """Streams by the ids that clients know, least recently used first.

    Args:
        max_idle_seconds: a stream that was not asked for this long, in seconds, is forgotten.
            ``None`` forgets none.
        clock: returns the time in seconds.
    """

    def __init__(
        self, max_idle_seconds: float | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._max_idle_seconds = max_idle_seconds
        self._clock = clock
        self._streams: OrderedDict[str, AsyncStreamApi] = OrderedDict()
        self._used: dict[str, float] = {}

    def add(self, stream: AsyncStreamApi) -> str:
        """Add a stream; returns its id."""
        stream_id = uuid.uuid4().hex
        self._streams[stream_id] = stream
        self._used[stream_id] = self._clock()
        return stream_id

    def find(self, stream_id: str) -> AsyncStreamApi | None:
        """Find a stream, and note that it was used now; ``None`` if there is no such stream."""
        if stream_id in self._streams:
            self._streams.move_to_end(stream_id)
            self._used[stream_id] = self._clock()
        return self._streams.get(stream_id)

    def remove(self, stream_id: str) -> AsyncStreamApi | None:
        self._used.pop(stream_id, None)
        return self._streams.pop(stream_id, None)

    def remove_forgotten(self) -> list[AsyncStreamApi]:
        """Remove the streams that were forgotten, and return them. One that generates is in use."""
        forgotten: list[AsyncStreamApi] = []
        if self._max_idle_seconds is None:
            return forgotten
        oldest = self._clock() - self._max_idle_seconds
        while self._streams:
            stream_id, stream = next(iter(self._streams.items()))
            if self._used[stream_id] >= oldest:
                break
            if stream.is_generating:
                self.find(stream_id)
            else:
                self.remove(stream_id)
                forgotten.append(stream)
        return forgotten
