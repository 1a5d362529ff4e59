"""What a request has to get past before any route sees it: the name that it was sent to, a key, how
many others are being answered, and the size of its body and the time that this takes."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections.abc import Iterator
from contextlib import contextmanager

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from paged_stream.serve.errors import INVALID, answer
from paged_stream.serve.json_answers import JsonAnswer
from paged_stream.serve.serve_options import ServeOptions

_OPEN_TO_ALL = ("/health", "/ready")  # for those who watch over the service
_LOCAL = ("localhost", "127.0.0.1", "[::1]")


class Guards:
    """An ASGI application before another one."""

    def __init__(self, app: ASGIApp, options: ServeOptions) -> None:
        self._app = app
        self._options = options
        self._hosts = _hosts(options)
        self._keys = [hashlib.sha256(key.encode()).digest() for key in options.keys]
        self._num_requests = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if (refusal := self._refusal(scope)) is not None:
            await refusal(scope, receive, send)
            return
        with self._counted(scope):
            await self._app(scope, self._limited(receive), send)

    def _refusal(self, scope: Scope) -> JsonAnswer | None:
        headers = dict(scope["headers"])
        host = _name(headers.get(b"host", b"").decode("latin-1"))
        if host and self._hosts and host not in self._hosts:
            return answer(f"this service is not {host!r}; see --allowed-hosts", INVALID, 400)
        if self._keys and scope["path"] not in _OPEN_TO_ALL and not self._has_key(headers):
            challenge = {"www-authenticate": "Bearer"}
            message = "an API key is needed: Authorization: Bearer KEY"
            return answer(message, INVALID, 401, code="invalid_api_key", headers=challenge)
        if _asks_much(scope) and self._num_requests >= self._options.max_requests:
            message = f"{self._num_requests} requests are being answered; try again later"
            kind = "rate_limit_error"
            return answer(message, kind, 429, code="queue_full", headers={"retry-after": "1"})
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self._options.max_body_bytes:
            return answer(self._too_large, INVALID, 413, headers={"connection": "close"})
        return None

    def _has_key(self, headers: dict[bytes, bytes]) -> bool:
        """Whether a key is known. How long that takes says nothing about the keys."""
        scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
        digest = hashlib.sha256(key.strip()).digest()
        known = [hmac.compare_digest(digest, each) for each in self._keys]
        return scheme.lower() == b"bearer" and any(known)

    @property
    def _too_large(self) -> str:
        return f"the body must have at most {self._options.max_body_bytes} bytes"

    @contextmanager
    def _counted(self, scope: Scope) -> Iterator[None]:
        count = int(_asks_much(scope))
        self._num_requests += count
        try:
            yield
        finally:
            self._num_requests -= count

    def _limited(self, receive: Receive) -> Receive:
        """A body that has to come within limits of size and time.

        Raises:
            HTTPException: it does not.
        """
        deadline = asyncio.get_running_loop().time() + self._options.request_seconds
        size, is_whole = 0, False

        async def receive_part() -> Message:
            nonlocal size, is_whole
            if is_whole:  # what comes now is that the client leaves
                return await receive()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(408, "the body did not come in time") from None
            size += len(message.get("body", b""))
            is_whole = not message.get("more_body", False)
            if size > self._options.max_body_bytes:
                raise HTTPException(413, self._too_large)
            return message

        return receive_part


def _asks_much(scope: Scope) -> bool:
    """Whether a request may take long: those that only look at something do not."""
    return scope["method"] == "POST"


def _hosts(options: ServeOptions) -> frozenset[str]:
    """The names that a request may be sent to; none: any. A browser sends pages of anybody to a
    service that listens to this machine only, but under the name of that page."""
    if options.allowed_hosts:
        return frozenset() if "*" in options.allowed_hosts else frozenset(options.allowed_hosts)
    host = f"[{options.host}]" if ":" in options.host else options.host
    return frozenset(_LOCAL) if host in _LOCAL else frozenset()


def _name(host: str) -> str:
    """A ``Host`` without its port."""
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.partition(":")[0].lower()
