"""Turns of open streams, as events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from paged_stream.engine.api import AsyncDeltas
from paged_stream.engine.outputs import RequestDelta
from paged_stream.serve.bodies import ChatBody, TurnBody
from paged_stream.serve.events import begun, metrics_json
from paged_stream.serve.open_stream import OpenStream
from paged_stream.serve.stream_events import Event

_ERRORS = (RuntimeError, ValueError)  # what a turn that has begun may end with


class Turn:
    """A turn that a request asks for. Nothing happens before its first event is awaited.

    Attributes:
        number: of the turn in its stream, which is in its events.
        before: the id of the last event before it.
    """

    def __init__(self, opened: OpenStream, body: TurnBody | ChatBody) -> None:
        self._opened = opened
        self._body = body
        self.number = opened.next_turn()
        self.before = opened.events.last_id

    async def events(self) -> AsyncGenerator[Event, None]:
        """Add the deltas to the stream's events, and yield them as such. At the end of a turn that
        has begun, however it comes, there is an event of the type ``"ended"``.

        Raises:
            ValueError: the turn is refused.
        """
        has_begun = is_told = False
        try:
            async with aclosing(self._deltas()) as deltas:
                async for delta in deltas:
                    has_begun = True
                    yield self._add("delta", **_content(delta))
            is_told, position = True, self._opened.stream.position
            yield self._add("ended", position=position)
        except _ERRORS as error:
            if has_begun:
                self._add("error", message=str(error))
            raise
        finally:
            if has_begun and not is_told:
                self._add("ended")

    def _deltas(self) -> AsyncDeltas:
        stream, body, params = self._opened.stream, self._body, self._body.params()
        if isinstance(body, ChatBody):
            return stream.chat(body.messages, params, **body.settings(), on_rewrite=body.on_rewrite)
        if body.prompt is not None:
            return stream.complete(body.prompt, params)
        return stream.generate(params)

    def _add(self, kind: str, **content: Any) -> Event:
        return self._opened.events.add(kind, turn=self.number, **content)

    async def start(self) -> None:
        """Let the turn go on by itself, whoever reads it.

        Raises:
            ValueError: the turn is refused.
        """
        self._opened.turn = asyncio.ensure_future(_read(await begun(self.events())))

    async def follow(self) -> AsyncGenerator[Event, None]:
        """What happens in the stream until a turn that goes on by itself has ended."""
        async with aclosing(self._opened.events.follow(self.before)) as events:
            async for event in events:
                yield event
                if event["type"] == "ended" and event["turn"] == self.number:
                    return


async def whole(events: AsyncGenerator[Event, None]) -> dict[str, Any]:
    """All of a turn as one."""
    text, token_ids, last = "", [], Event()
    async with aclosing(events):
        async for event in events:
            text += event.get("text", "")
            token_ids += event.get("token_ids", ())
            last |= event
    return last | {"text": text, "token_ids": token_ids}


async def _read(events: AsyncGenerator[Event, None]) -> None:
    try:
        async with aclosing(events):
            async for _ in events:
                pass
    except _ERRORS:
        pass  # whoever follows the stream is told


def _content(delta: RequestDelta) -> dict[str, Any]:
    content: dict[str, Any] = {
        "text": delta.delta_text,
        "token_ids": delta.delta_token_ids,
        "finish_reason": delta.finish_reason,
        "stop_reason": delta.stop_reason,
        "template_rewrote": delta.template_rewrote,
    }
    if delta.error is not None:
        content["error"] = delta.error
    return content | {"metrics": metrics_json(delta.metrics)} if delta.finished else content
