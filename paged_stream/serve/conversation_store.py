"""Conversations by id. Each goes on from the stream of its last response, and remembers what was
said; so many of an owner are kept, and of each so many items."""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import Any

from paged_stream.serve.errors import UnknownStreamError
from paged_stream.serve.open_streams import OpenStreams
from paged_stream.serve.response_items import Item, new_id

_NUM_KEPT = 1024
_NUM_ITEMS = 1024


@dataclass
class Conversation:
    """What is known of a conversation.

    Args:
        id: its name.
        metadata: the client's own.
        created_at: Unix time, in seconds.
        head: the last response, if there is one.
        said: items that the next answer is to, beside those of its request.
        items: the last items, those in ``said`` included.
    """

    id: str
    metadata: dict[str, Any]
    created_at: int
    head: str | None = None
    said: list[Item] = field(default_factory=list)
    items: deque[Item] = field(default_factory=lambda: deque(maxlen=_NUM_ITEMS))
    is_answered: bool = False

    @property
    def description(self) -> dict[str, Any]:
        """As OpenAI's clients know it."""
        told = {"id": self.id, "object": "conversation", "created_at": self.created_at}
        return told | {"metadata": self.metadata}

    def add(self, items: list[Item]) -> None:
        """Add what is said before the next answer.

        Raises:
            ValueError: more would wait for an answer than are kept.
        """
        if len(self.said) + len(items) > _NUM_ITEMS:
            raise ValueError(f"at most {_NUM_ITEMS} items may wait for an answer")
        self.said += items
        self.items += items

    def item(self, item_id: str) -> Item:
        """One of its items.

        Raises:
            UnknownStreamError: there is none of that name.
        """
        for item in self.items:
            if item["id"] == item_id:
                return item
        raise UnknownStreamError(f"there is no item {item_id!r} in {self.id!r}")

    def take_back(self, item_id: str) -> None:
        """Forget what was said and is not answered.

        Raises:
            UnknownStreamError: there is no item of that name.
            ValueError: the model has seen it.
        """
        item = self.item(item_id)
        if item not in self.said or self.is_answered:
            raise ValueError(f"item {item_id!r} stays: the model has seen it")
        self.said.remove(item)
        self.items.remove(item)


class ConversationStore:
    """The conversations of a service."""

    def __init__(self, streams: OpenStreams) -> None:
        self._streams = streams
        self._owned: dict[str, OrderedDict[str, Conversation]] = {}
        for owner, each, record in streams.files.records("conv_") if streams.has_files else ():
            items = deque(record.pop("items"), maxlen=_NUM_ITEMS)
            self._of(owner)[each] = Conversation(**record, items=items)

    def make(self, owner: str, metadata: dict[str, Any], items: list[Item]) -> Conversation:
        """Begin a conversation; the one that was used least may have to go.

        Raises:
            ValueError: as `Conversation.add`.
        """
        made = Conversation(new_id("conv"), metadata, int(time.time()))
        made.add(items)
        own = self._of(owner)
        own[made.id] = made
        if len(own) > _NUM_KEPT:
            self.remove(owner, next(iter(own)))
        return made

    def find(self, owner: str, conversation_id: str) -> Conversation:
        """A conversation, which is used now.

        Raises:
            UnknownStreamError: the owner has none of that name.
        """
        own = self._of(owner)
        if conversation_id not in own:
            raise UnknownStreamError(f"there is no conversation {conversation_id!r}")
        own.move_to_end(conversation_id)
        return own[conversation_id]

    def remove(self, owner: str, conversation_id: str) -> None:
        """Forget a conversation. Its responses stay.

        Raises:
            UnknownStreamError: the owner has none of that name.
        """
        self.find(owner, conversation_id)
        del self._of(owner)[conversation_id]
        if self._streams.has_files:
            self._streams.files.remove(owner, conversation_id)

    def rest(self) -> None:
        """Write them beside their streams, if those are written."""
        if not self._streams.has_files:
            return
        for owner, own in self._owned.items():
            for each in own.values():
                record = vars(each) | {"items": list(each.items), "is_answered": False}
                self._streams.files.write_record(owner, each.id, record)

    def _of(self, owner: str) -> OrderedDict[str, Conversation]:
        return self._owned.setdefault(owner, OrderedDict())
