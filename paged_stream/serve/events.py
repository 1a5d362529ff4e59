"""Deltas as server-sent events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, suppress
from dataclasses import asdict
from typing import Any, TypeVar

from fastapi.responses import StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from paged_stream.engine.lifetime import EngineStoppedError, StreamLostError
from paged_stream.engine.outputs import RequestMetrics
from paged_stream.serve.clients import ClientLeftError, while_connected
from paged_stream.serve.errors import AnswerFailedError, UnknownStreamError
from paged_stream.serve.json_answers import encode, error_body

T = TypeVar("T")
_TOLD = (AnswerFailedError, EngineStoppedError, StreamLostError, UnknownStreamError, ValueError)


def metrics_json(metrics: RequestMetrics) -> dict[str, Any]:
    """What `RequestMetrics` tells, as JSON."""
    return asdict(metrics) | {"time_in_queue": metrics.time_in_queue}


async def begun(deltas: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
    """Wait for the first delta, so that errors are known before anything is sent. Returns a
    generator of all deltas.

    Raises:
        ValueError: the request or the turn is refused.
        EngineStoppedError: the engine cannot go on.
    """
    first = await anext(deltas, None)

    async def all_deltas() -> AsyncGenerator[T, None]:
        async with aclosing(deltas):
            if first is not None:
                yield first
                async for delta in deltas:
                    yield delta

    return all_deltas()


def data_line(content: dict[str, Any]) -> bytes:
    """An event of nothing but data."""
    return b"data: %b\n\n" % encode(content)


def numbered_line(content: dict[str, Any]) -> bytes:
    """An event with its id, from which a client goes on after a break."""
    if "event_id" not in content:
        return data_line(content)
    return b"id: %d\ndata: %b\n\n" % (content["event_id"], encode(content))


def named_line(content: dict[str, Any]) -> bytes:
    """An event with its type."""
    return b"event: %b\ndata: %b\n\n" % (content["type"].encode(), encode(content))


def event_stream(
    deltas: AsyncGenerator[T, None],
    event: Callable[[T], dict[str, Any] | None],
    last: Callable[[], dict[str, Any] | None] = lambda: None,
    line: Callable[[dict[str, Any]], bytes] = data_line,
    has_done: bool = True,
) -> StreamingResponse:
    """Answer with one event per delta. If the client leaves, its request or turn ends.

    Args:
        event: makes the content of an event; ``None`` makes none.
        last: makes the content of one more event after the deltas, or ``None`` if there is none.
        line: makes the bytes of an event.
        has_done: whether ``[DONE]`` says that the answer has ended well.
    """

    async def lines() -> AsyncIterator[bytes]:
        async with aclosing(deltas):
            try:
                async for delta in deltas:
                    if (content := event(delta)) is not None:
                        yield line(content)
            except _TOLD as error:
                yield data_line(error_body(str(error), "server_error"))
                return
        if (end := last()) is not None:
            yield line(end)
        if has_done:
            yield b"data: [DONE]\n\n"

    return EventStream(lines(), media_type="text/event-stream")


class EventStream(StreamingResponse):
    """Closes its content as soon as the client leaves. Starlette's own would cancel it again and
    again while it cleans up, and would leave it to the garbage collector during a write.

    Between two events it lets others run, however many are at hand: those of other clients, and
    whoever hears that this one has left. asyncio warns of each that is written after that.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with suppress(ClientLeftError):
            await while_connected(receive, self._send(send))

    async def _send(self, send: Send) -> None:
        async def one(message: Message) -> None:
            await send(message)
            await asyncio.sleep(0)

        async with aclosing(self.body_iterator):  # type: ignore[type-var]
            await self.stream_response(one)
