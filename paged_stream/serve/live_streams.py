"""Live streams over HTTP, under ``/v1/streams``."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from paged_stream.engine.api import AsyncDeltas, AsyncEngineApi, AsyncStreamApi
from paged_stream.engine.outputs import RequestDelta
from paged_stream.serve.bodies import AppendBody, NewStream, TurnBody
from paged_stream.serve.clients import while_connected
from paged_stream.serve.errors import UnknownStreamError
from paged_stream.serve.events import begun, event_stream, metrics_json
from paged_stream.serve.json_answers import JsonAnswer
from paged_stream.serve.open_streams import OpenStreams


class StreamRoutes:
    """``/v1/streams`` and what is below it.

    Args:
        max_idle_seconds: as in `OpenStreams`.
    """

    def __init__(self, engine: AsyncEngineApi, max_idle_seconds: float | None) -> None:
        self._engine = engine
        self._streams = OpenStreams(max_idle_seconds)
        self.router = APIRouter(prefix="/v1/streams")
        self.router.post("")(self.open)
        self.router.get("/{stream_id}")(self.describe)
        self.router.get("/{stream_id}/visible")(self.visible)
        self.router.delete("/{stream_id}")(self.close)
        self.router.post("/{stream_id}/append")(self.append)
        self.router.post("/{stream_id}/generate")(self.generate)
        self.router.post("/{stream_id}/fork")(self.fork)

    async def open(self, body: NewStream, request: Request) -> dict[str, Any]:
        opening = self._engine.open_stream(**body.model_dump())
        return await self._add(await while_connected(request.receive, opening))

    async def describe(self, stream_id: str) -> dict[str, Any]:
        stats = await self._find(stream_id).stats()
        return {
            "id": stream_id,
            "position": stats.num_tokens,
            "sink_tokens": stats.num_sink_tokens,
            "visible_tokens": stats.num_visible_tokens,
            "evicted_tokens": stats.num_evicted_tokens,
            "location": stats.location,
        }

    async def visible(self, stream_id: str) -> dict[str, Any]:
        visible = await self._find(stream_id).visible()
        return {
            "id": stream_id,
            "sink_tokens": visible.num_sink_tokens,
            "runs": [asdict(run) for run in visible.runs],
        }

    async def append(self, stream_id: str, body: AppendBody) -> dict[str, Any]:
        stream = self._find(stream_id)
        await stream.append(body.prompt)
        return {"id": stream_id, "position": stream.position}

    async def generate(self, stream_id: str, body: TurnBody, request: Request) -> Response:
        stream = self._find(stream_id)
        deltas = await while_connected(request.receive, begun(_turn(stream, body)))
        if body.stream:
            return event_stream(deltas, lambda delta: _event(stream_id, delta))
        turn = await while_connected(request.receive, _whole(deltas))
        return JsonAnswer({"id": stream_id, "position": stream.position} | turn)

    async def fork(self, stream_id: str, request: Request) -> dict[str, Any]:
        forking = self._find(stream_id).fork()
        return await self._add(await while_connected(request.receive, forking))

    async def close(self, stream_id: str) -> dict[str, Any]:
        await _known(stream_id, self._streams.remove(stream_id)).close()
        return {"id": stream_id, "deleted": True}

    async def _add(self, stream: AsyncStreamApi) -> dict[str, Any]:
        stream_id = self._streams.add(stream)
        forgotten = self._streams.remove_forgotten()
        await asyncio.gather(*(each.close() for each in forgotten), return_exceptions=True)
        return {"id": stream_id, "position": stream.position}

    def _find(self, stream_id: str) -> AsyncStreamApi:
        return _known(stream_id, self._streams.find(stream_id))


def _known(stream_id: str, stream: AsyncStreamApi | None) -> AsyncStreamApi:
    if stream is None:
        raise UnknownStreamError(f"there is no stream {stream_id!r}")
    return stream


def _turn(stream: AsyncStreamApi, body: TurnBody) -> AsyncDeltas:
    params = body.params()
    if body.messages is not None and body.prompt is not None:
        raise ValueError("prompt and messages are two ways to say something; pass one of them")
    if body.prompt is not None:
        return stream.complete(body.prompt, params)
    if body.messages is not None:
        return stream.chat(body.messages, params, **body.settings(), on_rewrite=body.on_rewrite)
    return stream.generate(params)


async def _whole(deltas: AsyncDeltas) -> dict[str, Any]:
    text, token_ids, ending, metrics = "", [], {}, None
    async with aclosing(deltas):
        async for delta in deltas:
            text += delta.delta_text
            token_ids += delta.delta_token_ids
            ending, metrics = _ending(delta), metrics_json(delta.metrics)
    return {"text": text, "token_ids": token_ids, **ending, "metrics": metrics}


def _event(stream_id: str, delta: RequestDelta) -> dict[str, Any]:
    event = {
        "id": stream_id,
        "text": delta.delta_text,
        "token_ids": delta.delta_token_ids,
        **_ending(delta),
    }
    return event | {"metrics": metrics_json(delta.metrics)} if delta.finished else event


def _ending(delta: RequestDelta) -> dict[str, Any]:
    return {
        "finish_reason": delta.finish_reason,
        "stop_reason": delta.stop_reason,
        "template_rewrote": delta.template_rewrote,
    }
