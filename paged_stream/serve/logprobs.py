"""Log-probabilities in the two shapes that OpenAI's API has for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from paged_stream.engine.outputs import TokenLogprob
from paged_stream.serve.token_texts import TokenTexts

# JSON has no infinity. OpenAI's API writes this for what is all but impossible.
_LOWEST = -9999.0


def message_logprobs(texts: TokenTexts, entries: Sequence[TokenLogprob]) -> dict[str, Any]:
    """Those of a chat."""

    def entry(token_id: int, logprob: float) -> dict[str, Any]:
        content = list(texts.content(token_id))
        return {"token": texts.text(token_id), "logprob": _finite(logprob), "bytes": content}

    content = [
        entry(each.token_id, each.logprob)
        | {"top_logprobs": [entry(token_id, value) for token_id, value in _best(each.top)]}
        for each in entries
    ]
    return {"content": content, "refusal": None}


class TextLogprobs:
    """Those of a completion, whose tokens have offsets in its text.

    Args:
        num_top: how many of the most likely tokens are shown, besides the one that was sampled.
    """

    def __init__(self, texts: TokenTexts, num_top: int) -> None:
        self._texts = texts
        self._num_top = num_top
        self._offset = 0

    def first(self, token_id: int) -> dict[str, list[Any]]:
        """The entry of a prompt's first token, which nothing predicts."""
        return self._entries([(token_id, None, None)])

    def of(self, entries: Sequence[TokenLogprob]) -> dict[str, list[Any]]:
        """Lists with an entry for each token."""
        return self._entries([(e.token_id, _finite(e.logprob), self._top(e)) for e in entries])

    def _entries(self, rows: list[tuple[int, float | None, Any]]) -> dict[str, list[Any]]:
        tokens, offsets = [], []
        for token_id, _, _ in rows:
            tokens.append(self._texts.text(token_id))
            offsets.append(self._offset)
            self._offset += len(tokens[-1])
        return {
            "tokens": tokens,
            "token_logprobs": [logprob for _, logprob, _ in rows],
            "top_logprobs": [top for _, _, top in rows],
            "text_offset": offsets,
        }

    def _top(self, entry: TokenLogprob) -> dict[str, float]:
        """Several tokens may have one text, such as parts of characters: the likeliest counts."""
        found: dict[str, float] = {}
        best = _best(entry.top)[: self._num_top]
        for token_id, logprob in [*best, (entry.token_id, entry.logprob)]:
            found.setdefault(self._texts.text(token_id), _finite(logprob))
        return found


def _best(top: dict[int, float]) -> list[tuple[int, float]]:
    return sorted(top.items(), key=lambda pair: -pair[1])


def _finite(logprob: float) -> float:
    return max(logprob, _LOWEST)
