"""What a request has to get past before any route sees it: the name that it was sent to, a key, how
many others are being answered, and the size of its body and the time that this takes."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections.abc import Iterator
from contextlib import contextmanager

from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from paged_stream.serve.errors import INVALID, answer
from paged_stream.serve.json_answers import JsonAnswer
from paged_stream.serve.page_files import PAGE_PATHS
from paged_stream.serve.serve_options import ServeOptions

# For those who watch over the service, and the page, which asks for a key itself.
_OPEN_TO_ALL = ("/health", "/ready", "/")
_OWNER_LENGTH = 16  # hexadecimal digits of a key's hash
_LOCAL = ("localhost", "127.0.0.1", "[::1]")


def owner_of(connection: HTTPConnection) -> str:
    """Whose request it is: of the hash of its key, or the same for all who need none."""
    owner: str = connection.state.owner
    return owner


class Guards:
    """An ASGI application before another one."""

    def __init__(self, app: ASGIApp, options: ServeOptions) -> None:
        self._app = app
        self._options = options
        self._hosts = _hosts(options)
        self._keys = [hashlib.sha256(key.encode()).digest() for key in options.keys]
        self._num_requests = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        if (refusal := self._refusal(scope)) is not None:
            await refusal(scope, receive, send)
            return
        is_http = scope["type"] == "http"
        with self._counted(scope):
            await self._app(scope, self._limited(receive) if is_http else receive, send)

    def _refusal(self, scope: Scope) -> JsonAnswer | None:
        """What is wrong with a request; otherwise, note whose it is."""
        headers = dict(scope["headers"])
        host = _name(headers.get(b"host", b"").decode("latin-1"))
        if host and self._hosts and host not in self._hosts:
            return answer(f"this service is not {host!r}; see --allowed-hosts", INVALID, 400)
        if scope["type"] == "websocket" and not self._may_connect(headers):
            return answer("pages of this site may not connect; see --allowed-origins", INVALID, 403)
        key = self._key(headers)
        scope.setdefault("state", {})["owner"] = "all" if key is None else key[:_OWNER_LENGTH]
        if self._keys and not _is_open_to_all(scope["path"]) and key is None:
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

    def _key(self, headers: dict[bytes, bytes]) -> str | None:
        """The hash of the key in a request, if that is known. How long that takes says nothing
        about the keys."""
        scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
        digest = hashlib.sha256(key.strip()).digest()
        known = [hmac.compare_digest(digest, each) for each in self._keys]
        return digest.hex() if scheme.lower() == b"bearer" and any(known) else None

    def _may_connect(self, headers: dict[bytes, bytes]) -> bool:
        """Whether a page may have a WebSocket: browsers leave that question to the service."""
        origin = headers.get(b"origin")
        if origin is None:
            return True
        allowed = tuple(self._options.allowed_origins or ())
        its_own = origin.partition(b"://")[2] == headers.get(b"host")
        return its_own or "*" in allowed or origin.decode("latin-1") in allowed

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


def _is_open_to_all(path: str) -> bool:
    return path in _OPEN_TO_ALL or path.startswith(PAGE_PATHS)


def _asks_much(scope: Scope) -> bool:
    """Whether a request may take long: those that only look at something do not."""
    return (
        scope["type"] == "websocket"
        or scope["method"] == "POST"
        or scope["path"].endswith("/events")
    )


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
