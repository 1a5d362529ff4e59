"""Deltas as server-sent events, and errors as JSON."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, suppress
from dataclasses import asdict
from typing import Any

from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from paged_stream.engine.api import AsyncDeltas
from paged_stream.engine.lifetime import EngineStoppedError, StreamLostError
from paged_stream.engine.outputs import RequestDelta, RequestMetrics
from paged_stream.serve.clients import ClientLeftError, while_connected


def error_body(error: Exception, kind: str) -> dict[str, Any]:
    """An error in the shape that OpenAI's API gives it."""
    return {"error": {"message": str(error), "type": kind}}


def metrics_json(metrics: RequestMetrics) -> dict[str, Any]:
    """What `RequestMetrics` tells, as JSON."""
    return asdict(metrics) | {"time_in_queue": metrics.time_in_queue}


async def begun(deltas: AsyncDeltas) -> AsyncDeltas:
    """Wait for the first delta, so that errors are known before anything is sent. Returns a
    generator of all deltas.

    Raises:
        ValueError: the request or the turn is refused.
        EngineStoppedError: the engine cannot go on.
    """
    first = await anext(deltas, None)

    async def all_deltas() -> AsyncDeltas:
        async with aclosing(deltas):
            if first is not None:
                yield first
                async for delta in deltas:
                    yield delta

    return all_deltas()


def event_stream(
    deltas: AsyncDeltas,
    event: Callable[[RequestDelta], dict[str, Any]],
    last: Callable[[], dict[str, Any] | None] = lambda: None,
) -> StreamingResponse:
    """Answer with one event per delta. If the client leaves, its request or turn ends.

    Args:
        event: makes the content of an event.
        last: makes the content of one more event after the deltas, or ``None`` if there is none.
    """

    async def lines() -> AsyncIterator[str]:
        async with aclosing(deltas):
            try:
                async for delta in deltas:
                    yield f"data: {json.dumps(event(delta))}\n\n"
            except (EngineStoppedError, StreamLostError, ValueError) as error:
                yield f"data: {json.dumps(error_body(error, 'server_error'))}\n\n"
                return
        if (end := last()) is not None:
            yield f"data: {json.dumps(end)}\n\n"
        yield "data: [DONE]\n\n"

    return _EventStream(lines(), media_type="text/event-stream")


class _EventStream(StreamingResponse):
    """Closes its content as soon as the client leaves. Starlette's own would cancel it again and
    again while it cleans up, and would leave it to the garbage collector during a write."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with suppress(ClientLeftError):
            await while_connected(receive, self._send(send))

    async def _send(self, send: Send) -> None:
        async with aclosing(self.body_iterator):  # type: ignore[type-var]
            await self.stream_response(send)
