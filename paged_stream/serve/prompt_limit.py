"""How many tokens a request may bring."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from typing import Any, TypeGuard

from pydantic import BaseModel

from paged_stream.serve.token_texts import Vocabulary


class PromptLimit:
    """Refuses requests whose prompts are too long.

    Args:
        vocabulary: counts tokens.
        most: as ``max_prompt_tokens`` of `ServeOptions`.
    """

    def __init__(self, vocabulary: Vocabulary, most: int | None) -> None:
        self._vocabulary = vocabulary
        self._most = most

    def check(self, num_tokens: int) -> None:
        """Refuse a request with more tokens than it may have.

        Raises:
            ValueError: names the limit.
        """
        if self._most is not None and num_tokens > self._most:
            raise ValueError(
                f"the prompts of a request must have at most {self._most} tokens together "
                f"(max_prompt_tokens), got {num_tokens}"
            )

    async def check_body(self, body: BaseModel) -> None:
        """Refuse a body that brings too much to a stream.

        Raises:
            ValueError: as `check`.
        """
        said = [getattr(body, name, None) for name in ("prompt", "messages", "pin")]
        await self.check_said(*said, tools=getattr(body, "tools", None))

    async def check_said(self, *said: object, tools: Sequence[Any] | None = None) -> None:
        """Refuse what is too long for a stream.

        Args:
            said: token ids, texts, and messages, of which all texts count.
            tools: they count as JSON, which is how a template writes them.

        Raises:
            ValueError: as `check`.
        """
        if self._most is None:
            return
        ids = [each for each in said if _is_ids(each)]
        texts = list(_texts([each for each in said if not _is_ids(each)]))
        texts += [json.dumps(tools)] if tools else []
        num_ids = sum(map(len, ids))
        self.check(num_ids + (await self._count(texts) if texts else 0))

    async def _count(self, texts: Sequence[str]) -> int:
        tokenizer = (await self._vocabulary.texts()).tokenizer

        def count() -> int:
            return sum(len(tokenizer.encode(text, add_special_tokens=False)) for text in texts)

        return await asyncio.to_thread(count)


def _is_ids(said: object) -> TypeGuard[list[int]]:
    return isinstance(said, list) and all(isinstance(each, int) for each in said)


def _texts(said: object) -> Iterator[str]:
    """All texts in JSON, however deep they are; in no order."""
    left = [said]
    while left:
        each = left.pop()
        if isinstance(each, str):
            yield each
        elif isinstance(each, dict):
            left.extend(each.values())
        elif isinstance(each, list):
            left.extend(each)
