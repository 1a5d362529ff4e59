"""What users hand in as a prompt, checked where it enters."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NotRequired, Protocol, SupportsIndex, TypeAlias, TypedDict


class TokenArray(Protocol):
    """An array or a tensor of token ids, NumPy's and torch's for example."""

    def tolist(self) -> Any: ...


class TextPrompt(TypedDict):
    """A text, in the dict that vLLM takes."""

    prompt: str


class TokensPrompt(TypedDict):
    """Token ids, in the dict that vLLM takes, and the text that they stand for if it is known. That
    text only comes back as `RequestOutput.prompt`."""

    prompt_token_ids: Sequence[int] | TokenArray
    prompt: NotRequired[str]


PlainPrompt: TypeAlias = str | Sequence[int] | TokenArray
Prompt = PlainPrompt | TextPrompt | TokensPrompt
# One prompt or a list of them. Type checkers give a list one type of items to look for: with two,
# Sequence[int] and Sequence[Prompt], they would not know a dict in a list for a prompt.
Prompts: TypeAlias = str | TokenArray | TextPrompt | TokensPrompt | Sequence[Prompt | int]


def plain_prompt(prompt: Prompt) -> PlainPrompt:
    """Take a prompt out of its dict, if it is in one.

    Raises:
        ValueError: the dict is neither a `TextPrompt` nor a `TokensPrompt`.
    """
    if not isinstance(prompt, Mapping):
        return prompt
    given = {key: value for key, value in prompt.items() if value is not None}
    if others := [key for key in given if key not in ("prompt", "prompt_token_ids")]:
        raise ValueError(
            f"a prompt's dict may have 'prompt' and 'prompt_token_ids', got {others[0]!r}"
        )
    text: Any = given.get("prompt")
    if text is not None and not isinstance(text, str):
        raise ValueError(
            f"'prompt' must be text, got {text!r}; token ids go under 'prompt_token_ids'"
        )
    token_ids: Any = given.get("prompt_token_ids", text)
    if token_ids is None:
        raise ValueError(f"a prompt's dict must have 'prompt' or 'prompt_token_ids', got {prompt}")
    if isinstance(token_ids, str) and "prompt_token_ids" in given:
        raise ValueError(f"'prompt_token_ids' must be token ids, got {token_ids!r}")
    plain: PlainPrompt = token_ids
    return plain


def prompt_text(prompt: Prompt) -> str | None:
    """The text of a prompt that `plain_prompt` takes, if it has one."""
    text = prompt.get("prompt") if isinstance(prompt, Mapping) else prompt
    return text if isinstance(text, str) else None


def as_token_ids(prompt: Sequence[int] | TokenArray) -> list[int]:
    """Check that a prompt is a flat sequence of integers (arrays and tensors of them count).

    Raises:
        ValueError: it is none, or some of it are no integers.
    """
    values: object = prompt.tolist() if hasattr(prompt, "tolist") else prompt
    if isinstance(values, bytes | Mapping) or not isinstance(values, Iterable):
        raise ValueError(
            f"prompt must be text or a list of token ids, got {prompt!r}"
            + ("; decode it first" if isinstance(values, bytes) else "")
        )
    return [_as_token_id(value) for value in values]


def _as_token_id(value: SupportsIndex) -> int:
    try:
        if not isinstance(value, bool):  # of a mask
            return operator.index(value)
    except TypeError:
        pass
    raise ValueError(f"prompt token ids must be ints, got {value!r}")


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
