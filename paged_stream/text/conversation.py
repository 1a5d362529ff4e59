"""What a live stream remembers of its conversation: the messages in its window, and where they are.

Host memory stays bounded: what has left the window is forgotten, and so are the oldest messages if
what is remembered has more characters than `MAX_CHARS`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from paged_stream.text.chat_options import WritingOptions

MAX_CHARS = 1 << 22


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """What one ``chat`` has appended, and the answer behind it: all that came until the next.

    Args:
        messages: the messages; none if they were forgotten and only the answer is left.
        text: what was appended for them. It may begin with the end of the answer before.
        start: position of the first token of it.
        end: position behind it, where the answer begins.
        answer: the beginning of the answer as it was before the template rewrote it: ``text`` ends
            with what the template made of it.
        continues: whether the answer goes on with the last message, rather than being one.
    """

    messages: list[dict[str, Any]]
    text: str
    start: int
    end: int
    answer: str = ""
    continues: bool = False

    @property
    def num_chars(self) -> int:
        """How much memory it takes."""
        return len(json.dumps(self.messages)) + len(self.text) + len(self.answer)


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """The state of one stream. It does not change: every change makes another one.

    Args:
        pinned: messages that the stream was opened with.
        writing: how it is written where a ``chat`` does not say otherwise.
        before: what the template has written before the first exchange: the text of the pin, or
            what the template begins a document with if the stream had tokens already.
        exchanges: those that are remembered, oldest first; the last one always is.
        has_forgotten: whether there were others before them.
    """

    pinned: list[dict[str, Any]] = field(default_factory=list)
    writing: WritingOptions = WritingOptions()
    before: str = ""
    exchanges: tuple[Exchange, ...] = ()
    has_forgotten: bool = False

    def seen_from(self, first: int) -> Conversation:
        """Forget the exchanges that do not begin at position ``first`` or later, as their first
        tokens have left the window. What is left begins with a message of the user."""
        kept, has_forgotten = list(self.exchanges), self.has_forgotten
        num_chars = sum(each.num_chars for each in kept)
        while kept:
            oldest = kept[0]
            begins_late = has_forgotten and [m["role"] for m in oldest.messages[:1]] != ["user"]
            if oldest.start >= first and num_chars <= MAX_CHARS and not begins_late:
                break
            num_chars -= kept.pop(0).num_chars
            has_forgotten = True
        if len(kept) == len(self.exchanges):
            return self
        return self._after_loss(kept or [_only_answer(self.exchanges[-1].end)])

    def cut(self, start: int, end: int) -> Conversation:
        """Forget the exchanges that a cut of ``[start, end)`` has touched, and those before."""
        if not self.exchanges or end <= self.exchanges[0].start:
            return self
        if later := [each for each in self.exchanges if each.start >= end]:
            return self._after_loss(later)
        last = self.exchanges[-1].end
        behind = last + end - start if last <= start else max(last, end)
        return self._after_loss([_only_answer(behind)])

    def rewound(self, position: int) -> Conversation:
        """Forget the exchanges whose messages are not all before a position. What is left of them
        belongs to the answer before."""
        if not self.exchanges or self.exchanges[-1].end <= position:
            return self
        if kept := [each for each in self.exchanges if each.end <= position]:
            return replace(self, exchanges=tuple(kept))
        first = min(position, self.exchanges[0].start)
        if first == position and not self.has_forgotten:  # the conversation begins anew
            return replace(self, exchanges=())
        return self._after_loss([_only_answer(first)])

    def extended(self, exchanges: Sequence[Exchange], before: str) -> Conversation:
        """The same with other exchanges."""
        return replace(self, exchanges=tuple(exchanges), before=before)

    def _after_loss(self, exchanges: Sequence[Exchange]) -> Conversation:
        return replace(self, exchanges=tuple(exchanges), has_forgotten=True)


def _only_answer(position: int) -> Exchange:
    """An answer from a position on, to messages that were forgotten."""
    return Exchange(messages=[], text="", start=position, end=position)


def to_json(conversation: Conversation) -> dict[str, Any]:
    """Plain values, of which `from_json` makes the same conversation."""
    return asdict(conversation)


def from_json(value: Any, num_tokens: int) -> Conversation:
    """Read what `to_json` wrote.

    Args:
        num_tokens: of the stream.

    Raises:
        ValueError: it is no conversation of such a stream.
    """
    try:
        exchanges = tuple(Exchange(**each) for each in value["exchanges"])
        writing = WritingOptions(**value["writing"])
        rest = value | {"exchanges": exchanges, "writing": writing}
        conversation = Conversation(**rest)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"its conversation has not the fields of one ({error})") from None
    _check(conversation, num_tokens)
    return conversation


def _check(conversation: Conversation, num_tokens: int) -> None:
    """Raises ValueError: the fields have other types, or contradict each other."""
    messages, position = [conversation.pinned], 0
    words: list[object] = [conversation.before]
    flags: list[object] = [conversation.has_forgotten]
    for each in conversation.exchanges:
        messages.append(each.messages)
        words += [each.text, each.answer]
        flags.append(each.continues)
        if not (type(each.start) is int is type(each.end) and position <= each.start <= each.end):
            raise ValueError("the positions of its messages contradict each other")
        position = each.end
    if position > num_tokens:
        raise ValueError("it has messages behind its end")
    if not all(isinstance(each, list) and all(map(_is_message, each)) for each in messages):
        raise ValueError("its messages are no list of messages with a role and a content")
    if not all(isinstance(each, str) for each in words):
        raise ValueError("a text of its conversation is none")
    if not all(type(each) is bool for each in flags):
        raise ValueError("a field of its conversation is neither true nor false")


def _is_message(value: Any) -> bool:
    """Whether it has a role, and text or parts of text, or calls of tools."""
    if not isinstance(value, Mapping) or not isinstance(value.get("role"), str):
        return False
    content = value.get("content")
    if isinstance(content, list):
        return all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in content)
    return isinstance(content, str) or (content is None and bool(value.get("tool_calls")))
