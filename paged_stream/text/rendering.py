"""A conversation written by a chat template: what transformers' `apply_chat_template` writes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from paged_stream.text.chat_options import ChatOptions, as_json
from paged_stream.text.template_budget import TemplateLimitError
from paged_stream.text.template_sandbox import render

_REASONING = ("reasoning_content", "thinking", "reasoning")
_OPEN_END = "PagedStreamOpenEnd "  # with a space, which shows whether the template strips them


def render_messages(
    template: str,
    special_tokens: Mapping[str, Any],
    messages: Sequence[Mapping[str, Any]],
    options: ChatOptions,
) -> str:
    """Write a conversation.

    Args:
        special_tokens: variables of the template, such as ``bos_token``.

    Raises:
        ValueError: the template refuses the messages, or they are none.
    """
    plain = [_plain(message) for message in messages]
    if options.continue_final_message:
        _open(plain)
    variables = {
        **special_tokens,
        "documents": None,
        **(options.chat_template_kwargs or {}),
        "messages": plain,
        "tools": options.tools,
        "add_generation_prompt": options.add_generation_prompt,
    }
    try:
        text = render(template, variables)
    except TemplateLimitError as error:
        raise ValueError(f"messages: the chat template {error}") from error
    except Exception as error:  # templates expect strings, and fail on others as they like
        raise ValueError(f"messages: the chat template refuses them: {error}") from error
    return _without_end(text, messages[-1]) if options.continue_final_message else text


def _open(messages: list[dict[str, Any]]) -> None:
    """Mark where the last message's content ends."""
    content = messages[-1].get("content") if messages else None
    if not isinstance(content, str):
        raise ValueError("continue_final_message: the last message has no content to go on from")
    messages[-1]["content"] = content + _OPEN_END


def _without_end(text: str, last: Mapping[str, Any]) -> str:
    """What comes before the mark."""
    before, mark, after = text.rpartition(_OPEN_END.strip())
    if not mark or content_text(last).strip() not in before:
        raise ValueError(
            "continue_final_message: this chat template does not write the last message as it is, "
            f"{content_text(last)!r}"
        )
    return before if after.startswith(" ") else before.rstrip()


def _plain(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message as templates expect it: plain text as content, tool calls with dicts as arguments,
    nothing that is ``None``.

    Raises:
        ValueError: it is no message.
    """
    is_message = isinstance(message, Mapping) and isinstance(message.get("role"), str)
    if not is_message or not {"content", "tool_calls"} & message.keys():
        raise ValueError(
            f"messages: {message!r} is no message; pass dicts with 'role' and 'content'"
        )
    text = content_text(message)
    rest = {name: value for name, value in message.items() if name != "content"}
    plain = {name: value for name, value in rest.items() if value is not None}
    plain = as_json("messages", plain)
    if message.get("content") is not None:
        plain["content"] = text
    if isinstance(plain.get("tool_calls"), list):
        plain["tool_calls"] = [_with_dict(call) for call in plain["tool_calls"]]
    reasoning = [plain[name] for name in _REASONING if name in plain]
    return (
        {**plain, "reasoning_content": reasoning[0]}
        | ({"thinking": plain.get("thinking", reasoning[0])})
        if reasoning
        else plain
    )


def _with_dict(call: Any) -> Any:
    """A tool call whose arguments may have come as OpenAI's clients send them, in a JSON text."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = json.loads(function["arguments"])
    except ValueError:  # the model wrote this, and may see it as it was
        return call
    return {**call, "function": {**function, "arguments": arguments}}


def content_text(message: Mapping[str, Any]) -> str:
    """The content of a message, which may come in parts of text, or as none beside tool calls.

    Raises:
        ValueError: it has other parts, or is nothing of these.
    """
    parts = message.get("content")
    if isinstance(parts, str):
        return parts
    if parts is None and message.get("tool_calls"):
        return ""
    if not isinstance(parts, list | tuple):
        raise ValueError(
            f"messages: the content must be text, or parts of text, got {parts!r} in {message!r}"
        )
    return "".join(map(_part_text, parts))


def _part_text(part: Any) -> str:
    kind = part.get("type", "text") if isinstance(part, Mapping) else None
    if kind == "text" and isinstance(part.get("text"), str):
        text: str = part["text"]
        return text
    what = f"a part of type {kind!r}" if isinstance(kind, str) and kind != "text" else repr(part)
    raise ValueError(f"messages: the content must be text, or parts of text, got {what}")
