"""``/v1/conversations``, as OpenAI's clients use it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict

from paged_stream.serve.conversation_store import ConversationStore
from paged_stream.serve.guards import owner_of
from paged_stream.serve.response_items import Item, items_of, messages_of, page_of


class NewConversation(BaseModel):
    model_config = ConfigDict(extra="forbid")

    metadata: dict[str, str] | None = None
    items: list[dict[str, Any]] | None = None


class MetadataBody(BaseModel):
    model_config = ConfigDict(extra="forbid")

    metadata: dict[str, str]


class ItemsBody(BaseModel):
    model_config = ConfigDict(extra="forbid")

    items: list[dict[str, Any]]


class ConversationRoutes:
    """What a conversation is, beside the answers in it."""

    def __init__(self, conversations: ConversationStore) -> None:
        self._conversations = conversations
        self.router = APIRouter(prefix="/v1/conversations")
        self.router.post("")(self.make)
        self.router.get("/{name}")(self.describe)
        self.router.post("/{name}")(self.update)
        self.router.delete("/{name}")(self.remove)
        self.router.get("/{name}/items")(self.list_items)
        self.router.post("/{name}/items")(self.add_items)
        self.router.get("/{name}/items/{item_id}")(self.find_item)
        self.router.delete("/{name}/items/{item_id}")(self.remove_item)

    async def make(self, request: Request, body: NewConversation | None = None) -> dict[str, Any]:
        body = body or NewConversation()
        items = _checked(body.items or [])
        made = self._conversations.make(owner_of(request), body.metadata or {}, items)
        return made.description

    async def describe(self, name: str, request: Request) -> dict[str, Any]:
        return self._conversations.find(owner_of(request), name).description

    async def update(self, name: str, body: MetadataBody, request: Request) -> dict[str, Any]:
        found = self._conversations.find(owner_of(request), name)
        found.metadata = dict(body.metadata)
        return found.description

    async def remove(self, name: str, request: Request) -> dict[str, Any]:
        self._conversations.remove(owner_of(request), name)
        return {"id": name, "object": "conversation.deleted", "deleted": True}

    async def list_items(
        self,
        name: str,
        request: Request,
        order: Literal["asc", "desc"] = "desc",
        after: str | None = None,
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
    ) -> dict[str, Any]:
        found = self._conversations.find(owner_of(request), name)
        return page_of(list(found.items), order, after, limit)

    async def add_items(self, name: str, body: ItemsBody, request: Request) -> dict[str, Any]:
        items = _checked(body.items)
        self._conversations.find(owner_of(request), name).add(items)
        return page_of(items, "asc", None, len(items))

    async def find_item(self, name: str, item_id: str, request: Request) -> dict[str, Any]:
        return self._conversations.find(owner_of(request), name).item(item_id)

    async def remove_item(self, name: str, item_id: str, request: Request) -> dict[str, Any]:
        found = self._conversations.find(owner_of(request), name)
        found.take_back(item_id)
        return found.description


def _checked(said: list[dict[str, Any]]) -> list[Item]:
    """Items that a template can be given."""
    items = items_of(said)
    messages_of(items)
    return items
