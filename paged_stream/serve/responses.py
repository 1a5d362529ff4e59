"""``/v1/responses``: answers that go on from live streams, so that nothing is computed twice.

Each response that is stored has a stream of its own, which ends where the response does. To go on
from it is to fork that stream, so any response can be gone on from as long as it is kept.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from paged_stream.engine.outputs import RequestDelta
from paged_stream.scheduler.sampling_params import SamplingParams
from paged_stream.serve.choices import Json
from paged_stream.serve.clients import while_connected
from paged_stream.serve.description import IN_PARTS
from paged_stream.serve.events import begun, event_stream, named_line
from paged_stream.serve.guards import owner_of
from paged_stream.serve.json_answers import JsonAnswer
from paged_stream.serve.response_bodies import ResponseBody
from paged_stream.serve.response_items import items_of, messages_of, page_of
from paged_stream.serve.response_streams import Past, ResponseStreams
from paged_stream.serve.response_writer import ResponseWriter
from paged_stream.serve.service import Service
from paged_stream.text.chat_options import ChatOptions


class ResponseRoutes:
    """Answers requests, and keeps the answers."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._kept = ResponseStreams(service)
        self._background = service.background
        self.router = APIRouter(prefix="/v1/responses")
        self.router.post("", responses=IN_PARTS)(self.create)
        self.router.get("/{name}", responses=IN_PARTS)(self.retrieve)
        self.router.delete("/{name}")(self.delete)
        self.router.post("/{name}/cancel")(self.cancel)
        self.router.get("/{name}/input_items")(self.list_input)

    async def create(self, body: ResponseBody, request: Request) -> Response:
        self._service.adapter(body.model)
        body.check_background()
        events = self._answer(owner_of(request), body)
        events = await while_connected(request.receive, begun(events))
        if body.background:
            ongoing = await self._background.begin(owner_of(request), events)
            if not body.stream:
                return JsonAnswer(ongoing.response)
            events = ongoing.follow(-1)
        if body.stream:
            return _as_it_comes(events)
        last = await while_connected(request.receive, _last(events))
        return JsonAnswer(last["response"])

    async def retrieve(
        self, name: str, request: Request, stream: bool = False, starting_after: int = -1
    ) -> Response:
        ongoing = self._background.find(owner_of(request), name)
        if ongoing is None:
            response = self._kept.record(owner_of(request), name)["response"]
            if stream:
                raise ValueError("stream must be false: how the response came is not remembered")
            return JsonAnswer(response)
        if stream:
            return _as_it_comes(ongoing.follow(starting_after))
        return JsonAnswer(ongoing.response)

    async def delete(self, name: str, request: Request) -> dict[str, Any]:
        if not await self._background.remove(owner_of(request), name):
            self._kept.record(owner_of(request), name)
            await self._service.streams.close(owner_of(request), name)
        return {"id": name, "object": "response", "deleted": True}

    async def cancel(self, name: str, request: Request) -> dict[str, Any]:
        return await self._background.cancel(owner_of(request), name)

    async def list_input(
        self,
        name: str,
        request: Request,
        order: Literal["asc", "desc"] = "desc",
        after: str | None = None,
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
    ) -> dict[str, Any]:
        return page_of(self._kept.record(owner_of(request), name)["input"], order, after, limit)

    # An answer

    async def _answer(self, owner: str, body: ResponseBody) -> AsyncGenerator[Json, None]:
        """The events of a new response. The first one comes when the turn has begun.

        Raises:
            ValueError: the request is refused.
            UnknownStreamError: there is nothing to go on from.
        """
        past = self._kept.past(owner, body)
        if past.conversation is not None:
            past.conversation.is_answered = True
        try:
            async with aclosing(self._answer_in(owner, body, past)) as events:
                async for event in events:
                    yield event
        finally:
            if past.conversation is not None:
                past.conversation.is_answered = False

    async def _answer_in(
        self, owner: str, body: ResponseBody, past: Past
    ) -> AsyncGenerator[Json, None]:
        items, params, use = items_of(body.input), body.params(), body.tool_use()
        messages, writing = messages_of([*past.said, *items]), body.writing()
        await self._service.prompt_limit.check_said(
            body.instructions, messages, tools=writing.get("tools")
        )
        call_format, params = await self._service.reading(use, ChatOptions(**writing), params)
        texts = None if params.logprobs is None else await self._service.vocabulary.texts()
        found = await self._kept.begin(owner, body, past, messages)
        opened, is_kept = found.opened, False
        try:
            head = self._head(opened.id, body, past, params)
            writer = ResponseWriter(head, use.reader(call_format), use, texts)
            for event in writer.queue() if body.background else ():
                yield event
            last: RequestDelta | None = None
            async with aclosing(opened.stream.chat(found.messages, params, **writing)) as deltas:
                async for delta in deltas:
                    for event in (writer.begin() if last is None else []) + writer.feed(delta):
                        yield event
                    last = delta
            if last is None:
                raise ValueError("the stream is closed")
            num_shared = found.num_shared + (await opened.stream.stats()).num_prefix_hits
            events = writer.finish(last, num_shared, opened.stream.position)
            if body.store is not False and writer.response["status"] != "failed":
                is_kept = True
                await self._kept.keep(owner, opened, body, past, items, writer.response)
            for event in events:
                yield event
            yield writer.end()
        finally:
            if not is_kept:
                await opened.close()

    def _head(
        self, response_id: str, body: ResponseBody, past: Past, params: SamplingParams
    ) -> Json:
        """What a response says of itself from its beginning on."""
        named = past.conversation
        said = body.model_dump(by_alias=True, exclude_none=True)
        return {
            "id": response_id,
            "object": "response",
            "created_at": int(time.time()),
            "model": body.model or self._service.model,
            "previous_response_id": body.previous_response_id,
            "conversation": None if named is None else {"id": named.id},
            "temperature": params.temperature,
            "top_p": params.top_p,
            "error": None,
            "incomplete_details": None,
            "usage": None,
            "background": bool(body.background),
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "metadata": body.metadata or {},
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "reasoning": body.reasoning,
            "store": body.store is not False,
            "text": {"format": said.get("text", {}).get("format", {"type": "text"})},
            "tool_choice": said.get("tool_choice", "auto"),
            "tools": said.get("tools", []),
            "top_logprobs": body.top_logprobs or 0,
            "truncation": body.truncation or "disabled",
            "user": body.user,
        }


def _as_it_comes(events: AsyncGenerator[Json, None]) -> Response:
    return event_stream(events, lambda event: event, line=named_line, has_done=False)


async def _last(events: AsyncGenerator[Json, None]) -> Json:
    last: Json = {}
    async with aclosing(events):
        async for event in events:
            last = event
    return last
