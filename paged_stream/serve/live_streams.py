"""Live streams over HTTP, under ``/v1/streams``: what `AsyncStreamApi` has, as resources."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import asdict
from typing import Annotated, Any, TypeAlias

from fastapi import APIRouter, Header, Request
from fastapi.responses import Response

from paged_stream.serve.bodies import ChatBody, NewStream, SaveName, TurnBody
from paged_stream.serve.clients import while_connected
from paged_stream.serve.description import IN_BACKGROUND, IN_PARTS
from paged_stream.serve.events import begun, event_stream, numbered_line
from paged_stream.serve.guards import owner_of
from paged_stream.serve.json_answers import JsonAnswer
from paged_stream.serve.live_socket import LiveSocket
from paged_stream.serve.open_stream import OpenStream
from paged_stream.serve.open_streams import Opening
from paged_stream.serve.operations import OPERATIONS, fork, operate
from paged_stream.serve.saved_streams import SavedStreams
from paged_stream.serve.service import Service
from paged_stream.serve.stream_events import Event
from paged_stream.serve.turns import Turn, whole

_Making: TypeAlias = Callable[[OpenStream], AsyncGenerator[Event, None]]


class StreamRoutes:
    """``/v1/streams`` and what is below it."""

    def __init__(self, service: Service) -> None:
        self._engine = service.backend.engine
        self._adapter = service.adapter
        self._vocabulary = service.vocabulary
        self._streams = streams = service.streams
        self._limit = service.prompt_limit
        self._saved = SavedStreams(streams)
        self.router = APIRouter(prefix="/v1/streams")
        self.router.post("")(self.open)
        self.router.get("")(self.list)
        self.router.get("/saved")(self.list_saved)
        self.router.delete("/saved/{name}")(self.remove_saved)
        self.router.post("/saved/{name}/restore")(self.restore)
        self.router.get("/{stream_id}")(self.describe)
        self.router.delete("/{stream_id}")(self.close)
        self.router.get("/{stream_id}/visible")(self.visible)
        self.router.get("/{stream_id}/events", responses=IN_PARTS)(self.events)
        self.router.post("/{stream_id}/generate", responses=IN_BACKGROUND)(self.generate)
        self.router.post("/{stream_id}/chat", responses=IN_BACKGROUND)(self.chat)
        self.router.post("/{stream_id}/fork")(self.fork)
        self.router.post("/{stream_id}/save")(self.save)
        for name in OPERATIONS:
            self.router.post(f"/{{stream_id}}/{name}")(self._operation(name))
        self.router.websocket("/{stream_id}/live")(LiveSocket(streams, self._limit).serve)

    # All streams

    async def open(self, request: Request, body: NewStream | None = None) -> dict[str, Any]:
        body = body or NewStream.model_validate({})
        await self._limit.check_body(body)
        options = body.model_dump()
        options["lora_request"] = self._adapter(options.pop("model"))
        return await self._opened(
            request, lambda on_evict: self._engine.open_stream(**options, on_evict=on_evict)
        )

    async def _opened(self, request: Request, opening: Opening) -> dict[str, Any]:
        opening_one = self._streams.open(owner_of(request), opening)
        return _place(await while_connected(request.receive, opening_one))

    async def list(self, request: Request) -> dict[str, Any]:
        ids = self._streams.ids(owner_of(request))
        return {"object": "list", "data": [{"id": each, "object": "stream"} for each in ids]}

    async def list_saved(self, request: Request) -> dict[str, Any]:
        names = await asyncio.to_thread(self._saved.names, owner_of(request))
        return {"object": "list", "data": [{"name": each} for each in names]}

    async def remove_saved(self, name: str, request: Request) -> dict[str, Any]:
        await asyncio.to_thread(self._saved.remove, owner_of(request), name)
        return {"name": name, "deleted": True}

    async def restore(self, name: str, request: Request) -> dict[str, Any]:
        restoring = self._saved.restore(owner_of(request), name)
        return _place(await while_connected(request.receive, restoring))

    # One stream

    async def describe(self, stream_id: str, request: Request) -> dict[str, Any]:
        async with self._streams.using(owner_of(request), stream_id) as opened:
            # Before the numbers: those of a stream that does not generate are then the turn's last.
            told = {
                "is_generating": opened.stream.is_generating,
                "last_event_id": opened.events.last_id,
            }
            stats = asdict(await opened.stream.stats())
            return _place(opened) | told | stats

    async def close(self, stream_id: str, request: Request) -> dict[str, Any]:
        await self._streams.close(owner_of(request), stream_id)
        return {"id": stream_id, "deleted": True}

    async def visible(
        self, stream_id: str, request: Request, pieces: bool = False
    ) -> dict[str, Any]:
        """What the next token will see; on demand with ``pieces``, the text of each token."""
        async with self._streams.using(owner_of(request), stream_id) as opened:
            visible = asdict(await opened.stream.visible())
        if pieces:
            texts = await self._vocabulary.texts()
            for run in visible["runs"]:
                run["pieces"] = texts.pieces(run["token_ids"])
        return {"id": stream_id} | visible

    async def events(
        self,
        stream_id: str,
        request: Request,
        after: int | None = None,
        last_event_id: Annotated[int | None, Header()] = None,
    ) -> Response:
        first = after if last_event_id is None else last_event_id
        async with self._streams.using(owner_of(request), stream_id):
            pass  # says so if there is no such stream
        return self._event_stream(request, stream_id, lambda each: each.events.follow(first))

    async def generate(self, stream_id: str, body: TurnBody, request: Request) -> Response:
        return await self._turn(stream_id, body, request)

    async def chat(self, stream_id: str, body: ChatBody, request: Request) -> Response:
        return await self._turn(stream_id, body, request)

    async def _turn(self, stream_id: str, body: TurnBody | ChatBody, request: Request) -> Response:
        await self._limit.check_body(body)
        if body.background:
            return await self._unread_turn(stream_id, body, request)
        events = self._in_use(request, stream_id, lambda opened: Turn(opened, body).events())
        events = await while_connected(request.receive, begun(events))
        if body.stream:
            return event_stream(events, lambda event: event, line=numbered_line)
        answer = await while_connected(request.receive, whole(events))
        return JsonAnswer({"id": stream_id} | answer)

    async def _unread_turn(
        self, stream_id: str, body: TurnBody | ChatBody, request: Request
    ) -> Response:
        async with self._streams.using(owner_of(request), stream_id) as opened:
            turn = Turn(opened, body)
            await while_connected(request.receive, turn.start())
        if body.stream:
            return self._event_stream(request, stream_id, lambda _: turn.follow())
        told = {"id": stream_id, "turn": turn.number, "last_event_id": turn.before}
        return JsonAnswer(told, status_code=202)

    def _event_stream(self, request: Request, stream_id: str, make: _Making) -> Response:
        events = self._in_use(request, stream_id, make)
        return event_stream(events, lambda event: event, line=numbered_line)

    async def _in_use(
        self, request: Request, stream_id: str, make: _Making
    ) -> AsyncGenerator[Event, None]:
        """Events of a stream, which is in use as long as they are read."""
        async with self._streams.using(owner_of(request), stream_id) as opened:
            async with aclosing(make(opened)) as events:
                async for event in events:
                    yield event
                    await asyncio.sleep(0)  # many may be there, and the client may have left

    def _operation(self, name: str) -> Callable[..., Any]:
        kind = OPERATIONS[name]

        async def handle(stream_id: str, request: Request, body: Any = None) -> dict[str, Any]:
            arguments = kind() if body is None else body
            await self._limit.check_body(arguments)
            async with self._streams.using(owner_of(request), stream_id) as opened:
                return await while_connected(request.receive, operate(opened, name, arguments))

        # FastAPI reads the body as what is written here, and needs one where there are arguments.
        handle.__annotations__["body"] = kind if kind.model_fields else kind | None
        handle.__defaults__ = None if kind.model_fields else (None,)
        handle.__name__ = name
        return handle

    async def fork(self, stream_id: str, request: Request) -> dict[str, Any]:
        async with self._streams.using(owner_of(request), stream_id) as opened:
            return await self._opened(request, lambda on_evict: fork(opened, on_evict))

    async def save(self, stream_id: str, body: SaveName, request: Request) -> dict[str, Any]:
        await self._saved.save(owner_of(request), stream_id, body.name)
        return {"id": stream_id, "name": body.name}


def _place(opened: OpenStream) -> dict[str, Any]:
    return {"id": opened.id, "object": "stream", "position": opened.stream.position}
