"""From tokens to text as they come, in constant memory; finds stop strings on the way."""

from __future__ import annotations

from collections.abc import Sequence

from paged_stream.text.tokenizer import Tokenizer

_REPLACEMENT = "\ufffd"  # how a decoder shows bytes that are not a whole character yet
# Tokens to wait for the rest of a character. UTF-8 has at most 4 bytes, so after this many the
# bytes are simply not text.
_MAX_INCOMPLETE = 8
# Least number of tokens decoded again with each new one, so that decoders that look at what
# precedes (for leading spaces) see it.
CONTEXT_TOKENS = 4
_MAX_CONTEXT_TOKENS = 3 * CONTEXT_TOKENS


class Detokenizer:
    """Text of one completion, which follows ``context``: the last tokens before it.

    Decoding a token alone can differ from decoding it in its place. So each step decodes a short
    tail with the new tokens, and emits what is new. The tail is cut when it has grown too long.
    """

    def __init__(
        self, tokenizer: Tokenizer, stop: Sequence[str], context: Sequence[int] = ()
    ) -> None:
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        # What is emitted, or comes before what is to be emitted.
        self._context, self._context_text = self._cut(list(context))
        self._pending: list[int] = []  # not emitted: the end of their text is not whole
        self._held = ""  # text that may be the beginning of a stop string

    def append(self, token_id: int) -> tuple[str, bool]:
        """Add a token.

        Returns:
            The new text, and whether a stop string was completed; the text ends before it.
        """
        self._pending.append(token_id)
        return self._release(self._decode_pending(final=False), final=False)

    def finish(self) -> tuple[str, bool]:
        """Give out what was held back: no more tokens will come."""
        return self._release(self._decode_pending(final=True), final=True)

    def _decode_pending(self, *, final: bool) -> str:
        tokens = self._context + self._pending
        text = self._tokenizer.decode(tokens)
        incomplete = text.endswith(_REPLACEMENT) and len(self._pending) < _MAX_INCOMPLETE
        if incomplete and not final:
            return ""
        new = text[len(self._context_text) :]
        self._pending = []
        is_long = len(tokens) > _MAX_CONTEXT_TOKENS
        self._context, self._context_text = self._cut(tokens) if is_long else (tokens, text)
        return new

    def _cut(self, tokens: list[int]) -> tuple[list[int], str]:
        """The last of the tokens, and their text."""
        tail = tokens[-CONTEXT_TOKENS:]
        return tail, self._tokenizer.decode(tail)

    def _release(self, text: str, *, final: bool) -> tuple[str, bool]:
        if not self._stop:
            return text, False
        text = self._held + text
        found = [at for at in (text.find(stop) for stop in self._stop) if at >= 0]
        if found:
            self._held = ""
            return text[: min(found)], True
        keep = 0 if final else self._longest_stop_prefix(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], False

    def _longest_stop_prefix(self, text: str) -> int:
        """Length of the longest end of ``text`` with which some stop string begins."""
        longest = min(len(text), max(map(len, self._stop)) - 1)
        for length in range(longest, 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stop):
                return length
        return 0
