"""Connections whose clients have to send the head of a request in time."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol


def patient(seconds: float) -> type[asyncio.Protocol]:
    """uvicorn's protocol, which waits for ever, with a limit: so long it waits for a head, from its
    first byte on, and for the first byte of a new connection."""

    class Patient(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
        _patience: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
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
