"""A stream through a WebSocket: commands one way, while what happens in the stream comes the other.

A command is answered after those before it; ``interrupt`` at once.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from typing import Any

from fastapi import WebSocket
from pydantic import BaseModel, ValidationError
from starlette.websockets import WebSocketDisconnect

from paged_stream.serve.bodies import ChatBody, TurnBody
from paged_stream.serve.errors import INVALID, refusal, wrong_fields
from paged_stream.serve.events import begun
from paged_stream.serve.guards import owner_of
from paged_stream.serve.json_answers import encode, error_body
from paged_stream.serve.open_stream import OpenStream
from paged_stream.serve.open_streams import OpenStreams
from paged_stream.serve.operations import OPERATIONS, operate
from paged_stream.serve.prompt_limit import PromptLimit
from paged_stream.serve.stream_events import Event
from paged_stream.serve.turns import Turn

_MAX_COMMANDS = 64  # that wait for others
_MAX_LAG = 256  # events that a turn may be ahead of who reads it; more are remembered
_TURNS: dict[str, type[BaseModel]] = {"generate": TurnBody, "chat": ChatBody}


class LiveSocket:
    """``/v1/streams/{id}/live``."""

    def __init__(self, streams: OpenStreams, limit: PromptLimit) -> None:
        self._streams = streams
        self._limit = limit

    async def serve(self, socket: WebSocket, stream_id: str, after: int | None = None) -> None:
        try:
            async with self._streams.using(owner_of(socket), stream_id) as opened:
                await socket.accept()
                await _Connection(socket, opened, self._limit).run(after)
        except Exception as error:
            answer = refusal(error)
            if answer is None or socket.application_state.name != "CONNECTING":
                raise
            await socket.send_denial_response(answer)


class _Connection:
    def __init__(self, socket: WebSocket, opened: OpenStream, limit: PromptLimit) -> None:
        self._socket = socket
        self._opened = opened
        self._limit = limit
        self._commands: asyncio.Queue[dict[str, Any]] = asyncio.Queue(_MAX_COMMANDS)
        self._sending = asyncio.Lock()
        self._sent_id = opened.events.last_id
        self._progress = asyncio.Event()
        self._turn: asyncio.Task[None] | None = None

    async def run(self, after: int | None) -> None:
        """Serve until the client leaves or the stream is closed, and end the turn that the client
        has begun."""
        jobs = [self._tell(after), self._listen(), self._work()]
        tasks = [asyncio.ensure_future(job) for job in jobs]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            tasks += [] if self._turn is None else [self._turn]
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
        with suppress(RuntimeError, WebSocketDisconnect):  # the client may have left
            await self._socket.close()
        for result in results:
            if isinstance(result, Exception) and not isinstance(result, WebSocketDisconnect):
                raise result

    async def _tell(self, after: int | None) -> None:
        async with aclosing(self._opened.events.follow(after)) as events:
            async for event in events:
                await self._send(event)
                self._sent_id = event["event_id"]
                self._progress.set()
                await asyncio.sleep(0)  # many may be there, and the client may have left

    async def _send(self, content: dict[str, Any]) -> None:
        async with self._sending:
            await self._socket.send_text(encode(content).decode())

    async def _listen(self) -> None:
        while True:
            message = await self._socket.receive()
            if message["type"] == "websocket.disconnect":
                return
            content = message.get("text") or message.get("bytes") or ""
            try:
                command = json.loads(content)
                if not isinstance(command, dict) or not isinstance(command.get("type"), str):
                    raise ValueError("a command must be an object with a type")
                if command == {"type": "interrupt"}:
                    await self._opened.stream.end_turn()
                else:
                    self._commands.put_nowait(command)
            except asyncio.QueueFull:
                wait = f"{_MAX_COMMANDS} commands wait; let some be answered first"
                await self._refuse(ValueError(wait))
            except RecursionError:
                await self._refuse(ValueError("the JSON is too deep"))
            except Exception as error:
                await self._refuse(error)

    async def _work(self) -> None:
        while True:
            command = await self._commands.get()
            kind = command.pop("type")
            try:
                result = await self._do(kind, command)
            except Exception as error:
                await self._refuse(error, to=kind)
            else:
                await self._send({"type": "answer", "to": kind} | result)

    async def _refuse(self, error: Exception, to: str | None = None) -> None:
        """Say what is wrong with a command.

        Raises:
            Exception: the same, if it is the server's own fault.
        """
        if isinstance(error, ValidationError):
            text, param = wrong_fields(error.errors())
            content = error_body(text, INVALID, param=param)
        elif (found := refusal(error)) is not None:
            content = json.loads(bytes(found.body))
        else:
            raise error
        await self._send({"type": "refused", "to": to} | content)

    async def _do(self, kind: str, arguments: dict[str, Any]) -> dict[str, Any]:
        bodies = _TURNS | OPERATIONS
        if kind not in bodies:
            known = ", ".join([*bodies, "interrupt"])
            raise ValueError(f"type must be one of {known}, got {kind!r}")
        body = bodies[kind].model_validate(arguments)
        await self._limit.check_body(body)
        if isinstance(body, TurnBody | ChatBody):
            return await self._begin(body)
        return await operate(self._opened, kind, body)

    async def _begin(self, body: TurnBody | ChatBody) -> dict[str, Any]:
        turn = Turn(self._opened, body)
        if body.background:
            await turn.start()
        else:
            self._turn = asyncio.ensure_future(self._pace(await begun(turn.events())))
        return {"id": self._opened.id, "turn": turn.number}

    async def _pace(self, events: AsyncGenerator[Event, None]) -> None:
        """Read a turn no faster than the client reads it."""
        with suppress(RuntimeError, ValueError):  # who follows the stream is told
            async with aclosing(events):
                async for event in events:
                    while event["event_id"] - self._sent_id > _MAX_LAG:
                        self._progress.clear()
                        await self._progress.wait()
