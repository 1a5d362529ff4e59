"""The bytes that each token of a vocabulary adds to a text, for every kind of tokenizer."""

from __future__ import annotations

from paged_stream.text.tokenizer import Tokenizer

_REPLACEMENT = "\ufffd"


def all_token_bytes(tokenizer: Tokenizer, vocab_size: int) -> list[bytes]:
    """What each token adds behind others: bytes that need not be whole characters. Special tokens,
    ids that are in no vocabulary, and parts of characters whose bytes are not known add none.
    """
    if tokenizer.is_byte_level:
        return [tokenizer.token_bytes(token_id) for token_id in range(vocab_size)]
    found = _Neighbours(tokenizer)
    single = {token_id: byte for byte, token_id in enumerate(tokenizer.byte_tokens or ())}
    return [
        bytes((single[token_id],)) if token_id in single else found.text_of(token_id).encode()
        for token_id in range(vocab_size)
    ]


class _Neighbours:
    """Finds the text of a token between two others: some decoders write a token otherwise at the
    beginning of a text, and some at the end."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids = tokenizer.encode(".", add_special_tokens=False)
        self._before = tokenizer.decode(self._ids)
        self._after = tokenizer.decode(self._ids * 2)[len(self._before) :]

    def text_of(self, token_id: int) -> str:
        if not self._tokenizer.has_text(token_id):
            return ""
        text = self._tokenizer.decode([*self._ids, token_id, *self._ids])
        text = text[len(self._before) : len(text) - len(self._after)]
        return "" if _REPLACEMENT in text and self._tokenizer.cuts_characters else text
