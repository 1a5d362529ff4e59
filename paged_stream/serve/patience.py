"""Connections: of which there are so many at most, and whose clients have to send the head of a
request in time."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

from paged_stream.serve.json_answers import encode, error_body


def patient(seconds: float, most: int) -> type[asyncio.Protocol]:
    """uvicorn's protocol, with limits.

    Args:
        seconds: how long it waits for a head, from its first byte on, and for the first byte of a
            new connection.
        most: how many connections it serves at once. To others it says so, and hangs up.
    """
    refusal = _refusal(most)

    class Patient(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
        _patience: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            if len(self.connections) > most:
                transport.write(refusal)
                transport.close()
                return
            self._begin(transport)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            is_socket = self.transport.get_protocol() is not self
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


def _refusal(most: int) -> bytes:
    """An answer to a request that is not waited for."""
    body = encode(error_body(f"{most} connections are open; try again later", "server_error"))
    head = (
        "HTTP/1.1 503 Service Unavailable",
        "content-type: application/json",
        f"content-length: {len(body)}",
        "retry-after: 1",
        "connection: close",
    )
    return "\r\n".join([*head, "", ""]).encode() + body
