"""Items of OpenAI's Responses API: what a client says, as messages for a chat template."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from paged_stream.serve.openai_bodies import plain_messages

Item = dict[str, Any]
_PREFIXES = {"message": "msg", "function_call": "fc", "function_call_output": "fco"}
_TEXTS = {"input_text": "text", "output_text": "text", "text": "text", "refusal": "refusal"}


def items_of(said: str | Sequence[Mapping[str, Any]]) -> list[Item]:
    """What a client says as items, each with an id and in full: text alone is a message of the
    user.

    Raises:
        ValueError: an item is of a kind that this API does not know.
    """
    if isinstance(said, str):
        said = [{"role": "user", "content": said}]
    items: list[Item] = []
    for item in said:
        kind = item.get("type") or "message"
        if kind == "reasoning":  # of another model, perhaps: it is not shown to this one
            continue
        if kind not in _PREFIXES:
            raise ValueError(f"input: items are {', '.join(_PREFIXES)} or reasoning, got {kind!r}")
        full: Item = {"type": kind, "id": new_id(_PREFIXES[kind]), "status": "completed"}
        items.append(full | {name: value for name, value in item.items() if value is not None})
    return items


def messages_of(items: Sequence[Item]) -> list[dict[str, Any]]:
    """Items as messages. Calls that follow each other, or a message of the model, belong to one
    message.

    Raises:
        ValueError: an item lacks something, or has what is no text.
    """
    messages: list[dict[str, Any]] = []
    for item in items:
        if item["type"] == "message":
            messages.append({"role": _field(item, "role"), "content": _content(item, "content")})
        elif item["type"] == "function_call_output":
            content = _content(item, "output")
            messages.append(
                {"role": "tool", "tool_call_id": _field(item, "call_id"), "content": content}
            )
        else:
            if not messages or messages[-1]["role"] != "assistant":
                messages.append({"role": "assistant", "content": ""})
            function = {"name": _field(item, "name"), "arguments": _field(item, "arguments")}
            call = {"id": _field(item, "call_id"), "type": "function", "function": function}
            messages[-1].setdefault("tool_calls", []).append(call)
    return plain_messages(messages)


def _field(item: Item, name: str) -> str:
    value = item.get(name)
    if not isinstance(value, str):
        raise ValueError(f"input: {name} of a {item['type']} must be text, got {value!r}")
    return value


def _content(item: Item, name: str) -> str | list[dict[str, str]]:
    value = item.get(name)
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not all(isinstance(part, dict) for part in value):
        raise ValueError(f"input: {name} of a {item['type']} must be text or a list of parts")
    parts = []
    for part in value:
        field = _TEXTS.get(part.get("type"))
        if field is None or not isinstance(part.get(field), str):
            raise ValueError(f"input: a part of {name} must be text, got {part.get('type')!r}")
        parts.append({"type": "text", "text": part[field]})
    return parts


def new_id(prefix: str) -> str:
    """An id that nobody can guess."""
    return f"{prefix}_{uuid.uuid4().hex}"


def page_of(items: Sequence[Item], order: str, after: str | None, limit: int) -> dict[str, Any]:
    """A page of a list, as OpenAI's clients turn them.

    Args:
        order: ``"asc"`` or ``"desc"``.
        after: the id of the last item that the client has.
        limit: most items of a page.
    """
    found = list(items) if order == "asc" else list(reversed(items))
    ids = [item["id"] for item in found]
    begin = ids.index(after) + 1 if after in ids else 0
    page = found[begin : begin + limit]
    return {
        "object": "list",
        "data": page,
        "first_id": page[0]["id"] if page else None,
        "last_id": page[-1]["id"] if page else None,
        "has_more": begin + limit < len(found),
    }
