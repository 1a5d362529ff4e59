"""One stream of a service that is in the engine."""

from __future__ import annotations

import asyncio

from paged_stream.engine.api import AsyncStreamApi
from paged_stream.serve.stream_events import StreamEvents


class OpenStream:
    """A stream in the engine.

    Attributes:
        stream: of the engine.
        events: what happens in it.
        turn: what generates while nobody reads it.
    """

    def __init__(self, stream_id: str, stream: AsyncStreamApi, events: StreamEvents) -> None:
        self.id = stream_id
        self.stream = stream
        self.events = events
        self.turn: asyncio.Task[None] | None = None
        self._num_turns = 0

    def next_turn(self) -> int:
        """The number of another turn."""
        self._num_turns += 1
        return self._num_turns

    async def close(self) -> None:
        """End it, its turn, and what follows it."""
        if self.turn is not None:
            self.turn.cancel()
            await asyncio.wait([self.turn])
        await self.stream.close()
        self.events.end()
