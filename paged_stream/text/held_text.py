"""The text that a stream holds of its conversation, and where to cut it if it is to be another."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from paged_stream.text.conversation import Conversation, Exchange
from paged_stream.text.rendering import content_text
from paged_stream.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Heard:
    """What a stream holds at one moment.

    Args:
        conversation: what is remembered.
        num_tokens: length of the stream.
        num_sink_tokens: how many of its first tokens stay where they are.
        first_kept: first position behind these that can be cut.
        parts: ids of each exchange: of its text, and of the answer.
    """

    conversation: Conversation
    num_tokens: int
    num_sink_tokens: int
    first_kept: int
    parts: list[tuple[list[int], list[int]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """What to replace at the end of a stream.

    Args:
        kept: exchanges that stay as they are.
        start: position from which on everything is to be cut out, if anything is.
        rewritten: the exchange whose end is replaced, unless its messages were forgotten.
        token_ids: what is to be appended instead.
    """

    kept: Sequence[Exchange]
    start: int | None
    rewritten: Exchange | None
    token_ids: list[int]


def with_answer(exchange: Exchange, answer: str) -> list[dict[str, Any]]:
    """The messages of an exchange, and the answer."""
    if not exchange.continues:
        return [*exchange.messages, {"role": "assistant", "content": answer}]
    *others, last = exchange.messages
    said = content_text(last)
    if not exchange.text.endswith(said):  # the template strips spaces
        said = said.rstrip()
    return [*others, {**last, "content": said + answer}]


def answers_of(
    tokenizer: Tokenizer, conversation: Conversation, all_ids: Sequence[Sequence[int]]
) -> list[str]:
    """The answers as they were given."""
    return [
        exchange.answer + _decode(tokenizer, ids)
        for exchange, ids in zip(conversation.exchanges, all_ids, strict=True)
    ]


def _decode(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=False, continues=True)


@dataclass(frozen=True, slots=True)
class _Segment:
    """Tokens that were tokenized together: a text, or an answer."""

    index: int  # of its exchange
    is_answer: bool
    ids: Sequence[int]
    text: str
    stop: int


class HeldText:
    """The remembered part of a stream, in segments.

    Args:
        all_ids: the answers' ids, without the token that ends the last one.
    """

    def __init__(
        self, tokenizer: Tokenizer, heard: Heard, all_ids: Sequence[Sequence[int]]
    ) -> None:
        self._tokenizer, self._heard = tokenizer, heard
        self._answers = answers_of(tokenizer, heard.conversation, all_ids)
        conversation = heard.conversation
        self._before = "" if conversation.has_forgotten else conversation.before
        end = heard.num_tokens - (len(heard.parts[-1][1]) - len(all_ids[-1]))
        starts = [each.start for each in conversation.exchanges]
        self._segments: list[_Segment] = []
        for index, (each, (_, stop)) in enumerate(
            zip(conversation.exchanges, pairwise([*starts, end]), strict=True)
        ):
            ids, answer_ids = heard.parts[index][0], all_ids[index]
            answer = _decode(tokenizer, answer_ids)
            self._segments += [
                _Segment(index, False, ids, each.text, each.end),
                _Segment(index, True, answer_ids, answer, stop),
            ]
        self.text = self._before + "".join(each.text for each in self._segments)

    def difference(self, past: str | None) -> str:
        """Where the past differs, in words."""
        if past is None:
            return "the chat template writes what is pinned, or earlier messages, otherwise"
        at = len(os.path.commonprefix([past, self.text]))
        return (
            f"the chat template writes {past[at : at + 40]!r} where the stream has "
            f"{self.text[at : at + 40]!r}"
        )

    def cut(self, past: str | None) -> Cut:
        """Where to cut so that the stream can hold this past.

        Raises:
            ValueError: that is not in the window.
        """
        common = "" if past is None else os.path.commonprefix([past, self.text])
        if past is None or len(common) < len(self._before):
            raise ValueError(f"on_rewrite='cut': {self.difference(past)}, which cannot be cut")
        offset, segment = self._find(common)
        count = self._num_kept(segment, common[offset:])
        cut_from = segment.stop - len(segment.ids) + count  # sink tokens may be far before
        if cut_from < self._heard.first_kept:
            raise ValueError(
                f"on_rewrite='cut': {self.difference(past)}, within the sink tokens, which cannot "
                "be cut"
            )
        kept = _decode(self._tokenizer, segment.ids[:count])
        text = past[offset + len(kept) :]
        exchanges = self._heard.conversation.exchanges
        first = exchanges[segment.index]
        merged = replace(
            exchanges[-1],
            messages=self._messages_from(segment.index),
            text=(first.text if segment.is_answer else "") + kept + text,
            start=first.start,
            answer=self._answers[-1],
        )
        return Cut(
            kept=exchanges[: segment.index],
            start=cut_from if cut_from < self._heard.num_tokens else None,
            rewritten=merged if first.messages else None,
            token_ids=self._tokenizer.encode(text, continues=True) if text else [],
        )

    def _find(self, common: str) -> tuple[int, _Segment]:
        """The segment where the common beginning ends, and the number of characters before it."""
        offset = len(self._before)
        for segment in self._segments[:-1]:
            if len(common) < offset + len(segment.text):
                return offset, segment
            offset += len(segment.text)
        return offset, self._segments[-1]

    def _num_kept(self, segment: _Segment, common: str) -> int:
        """How many tokens of a segment to keep: up to a special token, in front of which texts are
        parted anyway. Without one, all that an answer has, and nothing that a text can keep."""
        low, high = 0, len(segment.ids)
        while low < high:
            middle = (low + high + 1) // 2
            if common.startswith(_decode(self._tokenizer, segment.ids[:middle])):
                low = middle
            else:
                high = middle - 1
        if low == len(segment.ids):
            return low
        for index in range(low, 0, -1):
            if segment.ids[index] in self._tokenizer.added_tokens:
                kept = _decode(self._tokenizer, segment.ids[:index])
                return index if common.startswith(kept) else 0
        return 0 if segment.is_answer else low

    def _messages_from(self, index: int) -> list[dict[str, Any]]:
        """Messages of an exchange and those behind it, but for the last answer."""
        exchanges = self._heard.conversation.exchanges
        said: list[dict[str, Any]] = []
        for exchange, answer in zip(exchanges[index:-1], self._answers[index:-1], strict=True):
            said += with_answer(exchange, answer)
        return said + exchanges[-1].messages
