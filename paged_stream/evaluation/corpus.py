"""Texts as one run of token ids, a piece at a time."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from paged_stream.text.text_file import read_text
from paged_stream.text.tokenizer import Tokenizer


def read_texts(paths: Sequence[str | Path]) -> list[str]:
    """Read text files.

    Raises:
        ValueError: names the file that is not UTF-8 text, or is empty.
        OSError: a file cannot be read.
    """
    texts = []
    for path in paths:
        text = read_text(path)
        if not text:
            raise ValueError(f"{path} is empty")
        texts.append(text)
    return texts


class Corpus:
    """Texts one after the other, tokenized one at a time; ``cycle`` begins anew after the last."""

    def __init__(self, texts: Sequence[str], tokenizer: Tokenizer, *, cycle: bool = False) -> None:
        self._texts = texts
        self._tokenizer = tokenizer
        self._cycle = cycle

    @property
    def digest(self) -> str:
        """Tells one list of texts from another."""
        digest = hashlib.blake2b(digest_size=16)
        for text in self._texts:
            digest.update(hashlib.blake2b(text.encode()).digest())
        return digest.hexdigest()

    @property
    def num_text_tokens(self) -> int:
        """Tokens of all texts, each read once."""
        leading = len(self._tokenizer.leading_ids) if self._texts else 0
        return sum(map(len, self._pieces(self._texts))) - leading

    def pieces(self) -> Iterator[list[int]]:
        """Token ids, one text at a time; the first begins a document, the others go on."""
        texts = itertools.cycle(self._texts) if self._cycle else iter(self._texts)
        return self._pieces(texts)

    def _pieces(self, texts: Iterable[str]) -> Iterator[list[int]]:
        for number, text in enumerate(texts):
            yield self._tokenizer.encode(text, continues=number > 0)

    def token_ids(self, start: int, stop: int) -> Iterator[int]:
        """The ids at positions ``[start, stop)``, as far as there are any."""
        return itertools.islice(itertools.chain.from_iterable(self.pieces()), start, stop)

    def num_predictions(self, limit: int | None) -> int:
        """How many tokens something predicts, or ``limit`` if there are more.

        Raises:
            ValueError: the corpus is too short, or it cycles and there is no limit.
        """
        if self._cycle:
            if limit is None:
                raise ValueError("tokens must be given with cycle, which has no end")
            return limit
        count = -1
        for piece in self.pieces():
            count += len(piece)
            if limit is not None and count >= limit:
                return limit
        if count < 1:
            raise ValueError(f"the texts must have at least 2 tokens, got {count + 1}")
        return count


def take(items: Iterator[Any], count: int) -> list[Any]:
    """The next ``count`` items, or as many as are left."""
    return list(itertools.islice(items, count))
