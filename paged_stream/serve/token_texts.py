"""The model's vocabulary, for what an API says about single tokens."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from paged_stream.engine.api import AsyncEngineApi
from paged_stream.text.increments import increments
from paged_stream.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class TokenTexts:
    """Texts and bytes of single tokens, remembered.

    Args:
        tokenizer: as transformers has it.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = Tokenizer(tokenizer)
        self._source = tokenizer
        self._texts: dict[int, tuple[str, bytes]] = {}

    def text(self, token_id: int) -> str:
        """What a token adds behind others; of a special token, its name. A part of a character is
        U+FFFD."""
        return self._of(token_id)[0]

    def pieces(self, token_ids: Sequence[int]) -> list[str]:
        """What each of these tokens adds to their text, special tokens included. A character comes
        with the token that completes it."""
        if not token_ids:
            return []
        text = increments(self.tokenizer, (), skip_special_tokens=False)
        pieces = [text.append(token_id) for token_id in token_ids]
        pieces[-1] += text.finish()
        return pieces

    def content(self, token_id: int) -> bytes:
        """The same as bytes, which need not be whole characters."""
        return self._of(token_id)[1]

    def has_special(self, texts: Iterable[str]) -> bool:
        """Whether one of these is a special token."""
        return not set(texts).isdisjoint(self.tokenizer.special_tokens.values())

    def description(self) -> dict[str, Any]:
        """The tokenizer in words: its class, special tokens and chat template."""
        names = {name: str(token) for name, token in self._source.special_tokens_map.items()}
        return {
            "tokenizer_class": type(self._source).__name__,
            **names,
            "chat_template": self._source.chat_template,
        }

    def _of(self, token_id: int) -> tuple[str, bytes]:
        if token_id not in self._texts:
            text = self.tokenizer.decode([token_id], skip_special_tokens=False, continues=True)
            content = text.encode()
            if self.tokenizer.is_byte_level:
                content = self.tokenizer.token_bytes(token_id, skip_special_tokens=False)
            self._texts[token_id] = text, content
        return self._texts[token_id]


class Vocabulary:
    """Fetches the tokenizer of an engine when it is needed first."""

    def __init__(self, engine: AsyncEngineApi) -> None:
        self._engine = engine
        self._texts: TokenTexts | None = None

    async def texts(self) -> TokenTexts:
        """The texts of tokens.

        Raises:
            ValueError: the model has no tokenizer.
        """
        if self._texts is None:
            tokenizer = await self._engine.get_tokenizer()
            self._texts = await asyncio.to_thread(TokenTexts, tokenizer)
        return self._texts
