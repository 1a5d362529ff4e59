"""Words that a request must not generate, as token ids."""

from __future__ import annotations

from collections.abc import Iterable

from paged_stream.text.tokenizer import Tokenizer


def bad_word_ids(tokenizer: Tokenizer, words: Iterable[str]) -> tuple[tuple[int, ...], ...]:
    """Ids of each word as it goes on from a text, without a space before it and with one."""
    texts = (before + word.lstrip() for word in words for before in ("", " "))
    found = (tuple(tokenizer.encode(text, continues=True)) for text in texts)
    return tuple(ids for ids in dict.fromkeys(found) if ids)
