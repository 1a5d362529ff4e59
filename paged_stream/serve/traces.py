"""Makes the span that a client tells of current while its request is answered."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from paged_stream.system.trace_context import from_headers, within


class ClientsSpan:
    """An ASGI application before another one."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = {
            name.decode("latin-1"): value.decode("latin-1")
            for name, value in scope.get("headers", ())
        }
        with within(from_headers(headers)):
            await self._app(scope, receive, send)
