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

    def finish(self) -> str:
        """Text of bytes that wait for the rest of their character, if it will not come: U+FFFD."""


def increments(
    tokenizer: Tokenizer,
    context: Sequence[int],
    *,
    skip_special_tokens: bool = True,
    spaces_between_special_tokens: bool = True,
) -> Increments:
    """Begin after ``context``, the last tokens before; the rest is as in `SamplingParams`."""
    if tokenizer.is_byte_level:  # whose texts have no spaces of their own
        return _ByteLevelIncrements(tokenizer, context, skip_special_tokens)
    shown = _WindowIncrements(tokenizer, context, skip_special_tokens)
    if skip_special_tokens or spaces_between_special_tokens:
        return shown
    return _UnspacedIncrements(tokenizer, shown)


class _ByteLevelIncrements:
    """For texts that are the tokens' bytes, one after the other."""

    def __init__(self, tokenizer: Tokenizer, context: Sequence[int], skips_special: bool) -> None:
        self._tokenizer = tokenizer
        self._skips_special = skips_special
        self._utf8 = _new_utf8_decoder("replace")
        for token_id in context:
            self.append(token_id)

    def append(self, token_id: int) -> str:
        return self._utf8.decode(self._tokenizer.token_bytes(token_id, self._skips_special))

    def finish(self) -> str:
        return self._utf8.decode(b"", final=True)


class _WindowIncrements:
    """For texts in which a token depends on its neighbours, or on being the first.

    The tokenizer decodes a short window with the new token, and what is longer than before is new.
    """

    def __init__(self, tokenizer: Tokenizer, context: Sequence[int], skips_special: bool) -> None:
        self._tokenizer = tokenizer
        self._skips_special = skips_special
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

    def finish(self) -> str:
        self._recent += self._characters.finish()
        return self._decode_all(self._before + self._recent)[len(self._text) :]

    def _whole(self, token_id: int) -> list[int]:
        """The tokens to decode next. One that the tokenizer skips does not part its neighbours."""
        has_text = self._tokenizer.has_text(token_id, self._skips_special)
        return self._characters.append(token_id) if has_text else []

    def _decode(self, token_ids: list[int]) -> str:
        return self._settled(self._decode_all(token_ids))

    def _decode_all(self, token_ids: list[int]) -> str:
        return self._tokenizer.decode(token_ids, self._skips_special)

    def _settled(self, text: str) -> str:
        return text.removesuffix(_REPLACEMENT) if self._cuts_characters else text

    def _forget(self) -> None:
        """Keep what has come last, but some text. A window without any would look like the
        beginning, of which some decoders strip spaces."""
        text = self._decode_all(self._recent)
        if text:
            self._before, self._recent, self._text = self._recent, [], self._settled(text)
            return
        text = self._decode(self._before + self._recent[-1:])
        if text:
            self._recent, self._text = self._recent[-1:], text
        elif len(self._recent) > _MAX_SILENT:
            del self._recent[-2]
            self._text = self._decode(self._before + self._recent)


class _UnspacedIncrements:
    """For texts that show special tokens, and no spaces between two of them."""

    def __init__(self, tokenizer: Tokenizer, inner: Increments) -> None:
        self._added_tokens = tokenizer.added_tokens
        self._inner = inner
        self._was_added = False  # the last token

    def append(self, token_id: int) -> str:
        text = self._inner.append(token_id)
        added = self._added_tokens.get(token_id)
        follows, self._was_added = self._was_added, added is not None
        return added if added is not None and follows else text

    def finish(self) -> str:
        return self._inner.finish()


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
        return [*self.finish(), token_id]

    def finish(self) -> list[int]:
        return self._tokens(self._utf8.decode(b"", final=True))

    def _tokens(self, text: str) -> list[int]:
        return [self._byte_tokens[byte] for byte in text.encode()]
