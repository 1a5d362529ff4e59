"""The text that each next token adds, for every kind of decoder, at constant cost and memory.

What is given out is never taken back, so bytes wait until they are a whole character. Bytes that
are no UTF-8 become U+FFFD and leave their neighbours alone; transformers gives up the whole run of
byte tokens that they are in.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Protocol

from paged_stream.text.tokenizer import Tokenizer

_REPLACEMENT = "\ufffd"  # how decoders show bytes that are not a whole character
# Least number of tokens of which a new one sees the text. Decoders look at one neighbour at most;
# and without byte tokens to ask for, the last three bytes tell whether a character is unfinished.
_NUM_NEIGHBOURS = 4
# Tokens at the beginning that are kept while there is no text. Those after them add none.
_MAX_SILENT = 32
_new_utf8_decoder = codecs.getincrementaldecoder("utf-8")


class Increments(Protocol):
    def append(self, token_id: int) -> str:
        """Text that a token adds, which may be none yet."""


def increments(tokenizer: Tokenizer, context: Sequence[int]) -> Increments:
    """Begin after ``context``, the last tokens before."""
    if tokenizer.is_byte_level:
        return _ByteLevelIncrements(tokenizer, context)
    return _WindowIncrements(tokenizer, context)


class _ByteLevelIncrements:
    """For texts that are the tokens' bytes, one after the other."""

    def __init__(self, tokenizer: Tokenizer, context: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._utf8 = _new_utf8_decoder("replace")
        for token_id in context:
            self.append(token_id)

    def append(self, token_id: int) -> str:
        return self._utf8.decode(self._tokenizer.token_bytes(token_id))


class _WindowIncrements:
    """For texts in which a token depends on its neighbours, or on being the first.

    The tokenizer decodes a short window with the new token, and what is longer than before is new.
    """

    def __init__(self, tokenizer: Tokenizer, context: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._cuts_characters = tokenizer.cuts_characters
        self._characters = _Characters(tokenizer.byte_tokens or ())
        self._before: list[int] = []
        for token_id in context:
            self._before += self._whole(token_id)
        self._recent: list[int] = []
        self._text = self._decode(self._before)  # of both

    def append(self, token_id: int) -> str:
        token_ids = self._whole(token_id)
        if not token_ids:
            return ""
        self._recent += token_ids
        text = self._decode(self._before + self._recent)
        new = text[len(self._text) :]
        self._text = text
        if len(self._recent) >= _NUM_NEIGHBOURS:
            self._forget()
        return new

    def _whole(self, token_id: int) -> list[int]:
        """The tokens to decode next. One that the tokenizer skips does not part its neighbours."""
        return self._characters.append(token_id) if self._tokenizer.has_text(token_id) else []

    def _decode(self, token_ids: list[int]) -> str:
        return self._settled(self._tokenizer.decode(token_ids))

    def _settled(self, text: str) -> str:
        return text.removesuffix(_REPLACEMENT) if self._cuts_characters else text

    def _forget(self) -> None:
        """Keep what has come last, but some text. A window without any would look like the
        beginning, of which some decoders strip spaces."""
        text = self._tokenizer.decode(self._recent)
        if text:
            self._before, self._recent, self._text = self._recent, [], self._settled(text)
            return
        text = self._decode(self._before + self._recent[-1:])
        if text:
            self._recent, self._text = self._recent[-1:], text
        elif len(self._recent) > _MAX_SILENT:
            del self._recent[-2]
            self._text = self._decode(self._before + self._recent)


class _Characters:
    """Passes tokens on, those that stand for a byte each (``byte_tokens``, by byte) as soon as they
    are a whole character. Instead of bytes that are no UTF-8, it passes on those of U+FFFD."""

    def __init__(self, byte_tokens: Sequence[int]) -> None:
        self._byte_tokens = byte_tokens
        self._bytes = {token_id: bytes((byte,)) for byte, token_id in enumerate(byte_tokens)}
        self._utf8 = _new_utf8_decoder("replace")

    def append(self, token_id: int) -> list[int]:
        byte = self._bytes.get(token_id)
        if byte is not None:
            return self._tokens(self._utf8.decode(byte))
        return [*self._tokens(self._utf8.decode(b"", final=True)), token_id]

    def _tokens(self, text: str) -> list[int]:
        return [self._byte_tokens[byte] for byte in text.encode()]
