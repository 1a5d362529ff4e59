"""The streams that responses are in: forked from that of the response before, or opened anew."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from paged_stream.serve.choices import Json
from paged_stream.serve.conversation_store import Conversation
from paged_stream.serve.errors import UnknownStreamError
from paged_stream.serve.open_stream import OpenStream
from paged_stream.serve.operations import fork
from paged_stream.serve.response_bodies import ResponseBody
from paged_stream.serve.response_items import Item, new_id
from paged_stream.serve.service import Service

_Messages = list[dict[str, Any]]


@dataclass(kw_only=True)
class Past:
    """What a request goes on from.

    Args:
        head: the response before, if there is one.
        record: what is kept with it.
        conversation: that both belong to.
        said: items that were said since.
    """

    head: str | None = None
    record: dict[str, Any] | None = None
    conversation: Conversation | None = None
    said: list[Item] = field(default_factory=list)

    @property
    def instructions(self) -> str | None:
        """Those that its stream has."""
        return None if self.record is None else self.record["instructions"]


@dataclass(kw_only=True)
class Begun:
    """The stream of a response, and what is to be said in it.

    Args:
        opened: the stream.
        messages: that the model is to answer.
        num_shared: tokens of the response before.
    """

    opened: OpenStream
    messages: _Messages
    num_shared: int = 0


class ResponseStreams:
    """Opens the stream of each response, and keeps it with the response."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._streams = service.streams

    def record(self, owner: str, name: str) -> dict[str, Any]:
        """What is kept of a response: itself under ``response``, and its ``input``.

        Raises:
            UnknownStreamError: the owner has no such response.
        """
        record: dict[str, Any] | None = self._streams.record(owner, name)
        if record is None:
            raise UnknownStreamError(f"{name!r} is no response, but a stream")
        return record

    def past(self, owner: str, body: ResponseBody) -> Past:
        """What a request goes on from.

        Raises:
            ValueError: it says so in two ways, or another request is being answered.
            UnknownStreamError: there is nothing of that name.
        """
        past = Past(head=body.previous_response_id)
        if (name := body.conversation_id) is not None:
            if body.store is False:
                raise ValueError("store must not be false in a conversation, which is kept")
            conversation = self._service.conversations.find(owner, name)
            if conversation.is_answered:
                raise ValueError(f"conversation {name!r} is being answered; wait for that")
            past = Past(
                head=conversation.head, conversation=conversation, said=list(conversation.said)
            )
        if past.head is not None:
            past.record = self.record(owner, past.head)
            self._check_model(body.model, past.record["response"]["model"])
        return past

    def _check_model(self, name: str | None, before: str) -> None:
        """A stream goes on with the adapter that it was begun with."""
        if self._service.adapter(name) != self._service.adapter(before):
            raise ValueError(f"model must be {before!r}, as in the response before, got {name!r}")

    async def begin(self, owner: str, body: ResponseBody, past: Past, messages: _Messages) -> Begun:
        """Open the stream that the answer will be in. Whoever calls this closes it, or keeps it.

        Raises:
            ValueError: as `AsyncEngineApi.open_stream` and `AsyncStreamApi.fork`.
            TooManyStreamsError: there is no place for it.
            NoRoomError: the stream of the response before cannot come back now.
        """
        if past.head is None:
            return await self._begin_anew(owner, body, messages)
        if body.instructions not in (None, past.instructions):
            messages = [*_system(body.instructions), *messages]
        async with self._streams.using(owner, past.head) as parent:
            num_shared = parent.stream.position
            opened = await self._streams.begin(
                owner, lambda on_evict: fork(parent, on_evict), new_id("resp")
            )
        return Begun(opened=opened, messages=messages, num_shared=num_shared)

    async def _begin_anew(self, owner: str, body: ResponseBody, messages: _Messages) -> Begun:
        """Open a stream that sees its instructions for ever, if the template begins with them."""
        messages = [*_system(body.instructions), *messages]
        roles = [message["role"] for message in messages]
        num_pinned = roles.index("user") if "user" in roles else 0
        pin = messages[:num_pinned] if set(roles[:num_pinned]) == {"system"} else None
        engine, writing = self._service.backend.engine, body.writing()
        adapter = self._service.adapter(body.model)
        if pin is not None:
            try:
                opened = await self._streams.begin(
                    owner,
                    lambda on_evict: engine.open_stream(
                        pin=pin, on_evict=on_evict, lora_request=adapter, **writing
                    ),
                    new_id("resp"),
                )
            except ValueError:  # what is wrong with anything else is told below
                pin = None
            else:
                messages = messages[num_pinned:]
        if pin is None:
            opened = await self._streams.begin(
                owner,
                lambda on_evict: engine.open_stream(
                    on_evict=on_evict, lora_request=adapter, **writing
                ),
                new_id("resp"),
            )
        return Begun(opened=opened, messages=messages)

    async def keep(
        self,
        owner: str,
        opened: OpenStream,
        body: ResponseBody,
        past: Past,
        items: list[Item],
        response: Json,
    ) -> None:
        """Keep a response with its stream, and let its conversation go on from it."""
        record = {
            "response": response,
            "input": [*past.said, *items],
            "instructions": past.instructions if body.instructions is None else body.instructions,
            "is_continued": False,
        }
        if past.record is not None:
            past.record["is_continued"] = True
        if (conversation := past.conversation) is not None:
            conversation.head = opened.id
            conversation.said = conversation.said[len(past.said) :]
            conversation.items += [*items, *response["output"]]
        await self._streams.keep(owner, opened, record)


def _system(instructions: str | None) -> _Messages:
    return [] if instructions is None else [{"role": "system", "content": instructions}]
