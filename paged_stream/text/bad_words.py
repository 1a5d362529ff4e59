"""Words that a request must not generate, as token ids."""

from __future__ import annotations

from collections.abc import Iterable

from paged_stream.text.tokenizer import Tokenizer


def bad_word_ids(tokenizer: Tokenizer, words: Iterable[str]) -> tuple[tuple[int, ...], ...]:
    """Ids of each word as it is written at the beginning of a text, and after a space if that is
    another token in front of the same number of tokens, as in vLLM."""
    found: list[list[int]] = []
    for word in words:
        bare, spaced = (
            tokenizer.encode(prefix + word.lstrip(), add_special_tokens=False)
            for prefix in ("", " ")
        )
        found.append(bare)
        if len(spaced) == len(bare) and spaced[:1] != bare[:1]:
            found.append(spaced)
    return tuple(tuple(ids) for ids in found if ids)
