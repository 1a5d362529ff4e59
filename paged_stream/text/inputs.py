"""What users hand in as a prompt, checked where it enters."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, SupportsIndex


class TokenArray(Protocol):
    """An array or a tensor of token ids, NumPy's and torch's for example."""

    def tolist(self) -> Any: ...


Prompt = str | Sequence[int] | TokenArray


def as_token_ids(prompt: Sequence[int] | TokenArray) -> list[int]:
    """Check that a prompt is a flat sequence of integers (arrays and tensors of them count).

    Raises:
        ValueError: it is none, or some of it are no integers.
    """
    values: object = prompt.tolist() if hasattr(prompt, "tolist") else prompt
    if isinstance(values, bytes | Mapping) or not isinstance(values, Iterable):
        raise ValueError(
            f"prompt must be text or a list of token ids, got {prompt!r}{_prompt_hint(values)}"
        )
    return [_as_token_id(value) for value in values]


def _as_token_id(value: SupportsIndex) -> int:
    try:
        if not isinstance(value, bool):  # of a mask
            return operator.index(value)
    except TypeError:
        pass
    raise ValueError(f"prompt token ids must be ints, got {value!r}")


def _prompt_hint(value: object) -> str:
    if isinstance(value, bytes):
        return "; decode it first"
    for key in ("prompt_token_ids", "prompt"):
        if isinstance(value, Mapping) and key in value:
            return f"; pass what stands under {key!r}"
    return ""


@contextmanager
def naming_item(name: str, index: int, count: int) -> Iterator[None]:
    """Let a `ValueError` say which of ``count`` items it is about, if there are several."""
    try:
        yield
    except ValueError as error:
        if count == 1:
            raise
        message = str(error).removeprefix(f"{name}: ")
        raise ValueError(f"{name}[{index}]: {message}") from error


def check_range(token_ids: Sequence[int], vocab_size: int) -> None:
    """Refuse an empty prompt and ids that the model does not have."""
    if not token_ids:
        raise ValueError("prompt must not be empty")
    lowest, highest = min(token_ids), max(token_ids)
    if lowest < 0 or highest >= vocab_size:
        bad = lowest if lowest < 0 else highest
        raise ValueError(f"prompt token ids must be in [0, {vocab_size}), got {bad}")
