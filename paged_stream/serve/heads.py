"""Heads of requests: of a size within limits, and refused in the shape of OpenAI's API where they
are no HTTP."""

from __future__ import annotations

from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

from paged_stream.serve.errors import INVALID
from paged_stream.serve.json_answers import encode, error_body

_MAX_BYTES = 1 << 16
_FIELD_BYTES = 32  # what HTTP/2 counts a field for, beside its name and value


def written(status: str, message: str, kind: str, *headers: str) -> bytes:
    """An answer to a request that is not waited for; it is the connection's last one.

    Args:
        status: with its reason, as ``"400 Bad Request"``.
        kind: as `error_body`.
    """
    body = encode(error_body(message, kind))
    head = (
        f"HTTP/1.1 {status}",
        "content-type: application/json",
        f"content-length: {len(body)}",
        *headers,
        "connection: close",
    )
    return "\r\n".join([*head, "", ""]).encode() + body


class _Refusing(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
    """uvicorn's protocol, whose refusals are written by `written`."""

    def send_400_response(self, message: str) -> None:
        """Say that this is no HTTP, unless an answer is under way, which would be garbled."""
        is_idle = self.cycle is None or self.cycle.response_complete
        self.hang_up(written("400 Bad Request", message, INVALID) if is_idle else b"")

    def hang_up(self, last_words: bytes) -> None:
        if not self.transport.is_closing():
            self.transport.write(last_words)
            self.transport.close()


class _Limiting(_Refusing):
    """httptools' parser keeps a head, and what follows a body, however long they are. It calls the
    methods below for each part; what it has got since is counted, too."""

    _head_bytes = _unread_bytes = 0
    _is_read = False

    def data_received(self, data: bytes) -> None:
        self._is_read = False
        super().data_received(data)
        self._unread_bytes = 0 if self._is_read else self._unread_bytes + len(data)
        if self._unread_bytes > _MAX_BYTES:
            self._refuse()

    def on_message_begin(self) -> None:
        self._head_bytes = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value) + _FIELD_BYTES)
        super().on_header(name, value)

    def on_body(self, body: bytes) -> None:
        self._is_read = True
        super().on_body(body)

    def _count(self, size: int) -> None:
        self._is_read = True
        self._head_bytes += size
        if self._head_bytes > _MAX_BYTES:
            self._refuse()
            raise ValueError("the head is too large")  # ends the parsing

    def _refuse(self) -> None:
        message = f"the head of a request must have at most {_MAX_BYTES} bytes"
        self.hang_up(written("431 Request Header Fields Too Large", message, INVALID))


# h11, which uvicorn takes where there is no httptools, has such a limit.
SizedHeads: Any = _Limiting if hasattr(AutoHTTPProtocol, "on_url") else _Refusing
