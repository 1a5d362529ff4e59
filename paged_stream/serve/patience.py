"""Connections: of which there are so many at most, and whose clients have to send the head of a
request in time."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from paged_stream.serve.errors import INVALID
from paged_stream.serve.heads import SizedHeads, written

# What any client can make uvicorn say, as often as it likes.
_PROVOKED = (
    "ASGI callable returned without completing handshake.",  # a WebSocket was refused
    "Invalid HTTP request received.",
    "No supported WebSocket library detected.",  # older ones say so of every upgrade
    "Unsupported upgrade request.",
)


def patient(seconds: float, most: int) -> type[asyncio.Protocol]:
    """uvicorn's protocol, with limits.

    Args:
        seconds: how long it waits for a head, from its first byte on, and for the first byte of a
            new connection.
        most: how many connections it serves at once. To others it says so, and hangs up.
    """
    message = f"{most} connections are open; try again later"
    busy = written("503 Service Unavailable", message, "server_error", "retry-after: 1")

    no_socket = written("400 Bad Request", "this head opens no WebSocket", INVALID)

    class Patient(SizedHeads):
        _patience: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            if len(self.connections) > most:
                self.hang_up(busy)
                return
            self._begin(transport)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            protocol = self.transport.get_protocol()
            is_socket = protocol is not self
            # That of websockets takes no head with a body, or with very many lines, but waits.
            if is_socket and not getattr(protocol, "handshake_initiated", True):
                self.hang_up(no_socket)
            if is_socket or (self.cycle is not None and not self.cycle.response_complete):
                self._end()  # a whole head was there
            elif self._patience is None:
                self._begin(self.transport)

        def connection_lost(self, error: Exception | None) -> None:
            self._end()
            super().connection_lost(error)

        def _begin(self, transport: Any) -> None:
            self._patience = asyncio.get_running_loop().call_later(seconds, transport.abort)

        def _end(self) -> None:
            if self._patience is not None:
                self._patience.cancel()
                self._patience = None

    return Patient


def be_quiet() -> None:
    """Keep out of the log what clients provoke that are no clients of this service."""
    logging.getLogger("uvicorn.error").addFilter(
        lambda record: not str(record.msg).startswith(_PROVOKED)
    )
