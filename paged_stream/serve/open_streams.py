"""The streams that clients of a service have open, by id, and those that were forgotten."""

from __future__ import annotations

import time
import uuid
from collections import OrderedDict
from collections.abc import Callable

from paged_stream.pool.async_stream import AsyncPoolStream


class OpenStreams:
    """Streams by the ids that clients know, least recently used first.

    Args:
        max_idle_seconds: a stream that was not asked for in so long is forgotten; ``None`` forgets
            none.
        clock: seconds.
    """

    def __init__(
        self, max_idle_seconds: float | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._max_idle_seconds = max_idle_seconds
        self._clock = clock
        self._streams: OrderedDict[str, AsyncPoolStream] = OrderedDict()
        self._used: dict[str, float] = {}

    def add(self, stream: AsyncPoolStream) -> str:
        """Returns the stream's id."""
        stream_id = uuid.uuid4().hex
        self._streams[stream_id] = stream
        self._used[stream_id] = self._clock()
        return stream_id

    def find(self, stream_id: str) -> AsyncPoolStream | None:
        """The stream, which was used now, if there is one."""
        if stream_id in self._streams:
            self._streams.move_to_end(stream_id)
            self._used[stream_id] = self._clock()
        return self._streams.get(stream_id)

    def remove(self, stream_id: str) -> AsyncPoolStream | None:
        self._used.pop(stream_id, None)
        return self._streams.pop(stream_id, None)

    def remove_forgotten(self) -> list[AsyncPoolStream]:
        """Those not asked for in ``max_idle_seconds``. One that generates is in use."""
        forgotten: list[AsyncPoolStream] = []
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
