"""Kinds of fields that hold words or lists; see ``fields.py``."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from .fields import Integer, Kind, Number, Words, as_int

_LARGEST_BIAS = 100.0


@dataclass(frozen=True, slots=True)
class Choice(Kind):
    """One of several words; a dtype of torch counts as its name.

    Args:
        same: other words, and the choices that they stand for.
        near: words that are refused, and the choices that were perhaps meant.
    """

    choices: tuple[str, ...]
    same: Mapping[str, str] = field(default_factory=dict, kw_only=True)
    near: Mapping[str, str] = field(default_factory=dict, kw_only=True)
    metavar: ClassVar[str] = "NAME"

    @property
    def allowed(self) -> str:
        return ", ".join(self.choices)

    def _check(self, name: str, value: Any) -> str | None:
        text = str(value).removeprefix("torch.") if type(value).__name__ == "dtype" else value
        if not isinstance(text, str):
            text = ""
        text = self.same.get(text, text)
        if self.optional and text == "none":
            return None
        if text not in self.choices:
            choices = [*self.choices, "None"] if self.optional else self.choices
            hint = self.near.get(text)
            raise ValueError(
                f"{name} must be one of {', '.join(choices)}, got {value!r}"
                + (f"; did you mean {hint!r}?" if hint else "")
            )
        return text


@dataclass(frozen=True, slots=True)
class Text(Kind):
    """Any text, or text of one form.

    Args:
        pattern: a regular expression that all of the text must match.
        form: what that means, in words.
    """

    pattern: str = r"(?s:.+)"
    form: str = "text"

    @property
    def allowed(self) -> str:
        return self.form

    def _check(self, name: str, value: Any) -> str:
        if not isinstance(value, str) or not re.fullmatch(self.pattern, value):
            raise ValueError(f"{name} must be {self.form}{self._or_none}, got {value!r}")
        return value


@dataclass(frozen=True, slots=True)
class Texts(Kind):
    """Texts that are not empty: one, or a list of them. ``None`` is no text."""

    words: ClassVar[Words] = "repeated"
    json_type: ClassVar[Any] = str | list[str]

    @property
    def allowed(self) -> str:
        return "text, or a list of texts"

    def _check(self, name: str, value: Any) -> tuple[str, ...]:
        texts = (value,) if isinstance(value, str) else _as_tuple(value)
        if texts is None or not all(isinstance(item, str) and item for item in texts):
            raise ValueError(f"{name} must be a non-empty string or a list of them, got {value!r}")
        return texts

    def _parse(self, text: str) -> list[Any]:
        items = _json_list(text)
        is_texts = items is not None and all(isinstance(item, str) for item in items)
        return items if is_texts and items is not None else [text]


@dataclass(frozen=True, slots=True)
class Integers(Kind):
    """A list of integers that are not negative. ``None`` is an empty one."""

    words: ClassVar[Words] = "repeated"
    metavar: ClassVar[str] = "N"
    json_type: ClassVar[Any] = list[int]

    @property
    def allowed(self) -> str:
        return "list of ints >= 0"

    def _check(self, name: str, value: Any) -> tuple[int, ...]:
        try:
            items = _as_tuple(value)
            if items is not None:
                return tuple(as_int(name, item, 0) for item in items)
        except ValueError:
            pass
        raise ValueError(f"{name} must be a list of ints >= 0, got {value!r}")

    def _parse(self, text: str) -> list[Any]:
        items = _json_list(text)
        return [Integer().parse(text)] if items is None else items


@dataclass(frozen=True, slots=True)
class Biases(Kind):
    """Numbers by token id, which may be text, as in JSON. What is beyond 100 becomes 100."""

    metavar: ClassVar[str] = "JSON"
    json_type: ClassVar[Any] = dict[str, float]

    @property
    def allowed(self) -> str:
        return "JSON object of numbers by token id"

    def _check(self, name: str, value: Any) -> dict[int, float]:
        try:
            if isinstance(value, Mapping):
                pairs = ((self._token_id(name, key), bias) for key, bias in value.items())
                return {token_id: _bias(name, bias) for token_id, bias in pairs}
        except ValueError:
            pass
        raise ValueError(
            f"{name} must be a mapping of token ids >= 0 to numbers{self._or_none}, got {value!r}"
        )

    @staticmethod
    def _token_id(name: str, key: Any) -> int:
        return as_int(name, Integer().parse(key) if isinstance(key, str) else key, 0)

    def _parse(self, text: str) -> Any:
        try:
            return json.loads(text)
        except ValueError:
            return text


def _bias(name: str, value: Any) -> float:
    number: float = Number(-math.inf).check(name, value)
    return min(_LARGEST_BIAS, max(-_LARGEST_BIAS, number))


@dataclass(frozen=True, slots=True)
class Functions(Kind):
    """Functions: one, or a list of them. ``None`` is no function."""

    @property
    def allowed(self) -> str:
        return "function, or a list of functions"

    def _check(self, name: str, value: Any) -> tuple[Callable[..., Any], ...]:
        functions = (value,) if callable(value) else _as_tuple(value)
        if functions is None or not all(map(callable, functions)):
            raise ValueError(f"{name} must be a function or a list of them, got {value!r}")
        return functions


def _as_tuple(values: object) -> tuple[Any, ...] | None:
    """Items of a list or another sequence; ``None`` if it is none."""
    if values is None:
        return ()
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        return None
    return tuple(values)


def _json_list(text: str) -> list[Any] | None:
    try:
        items = json.loads(text)
    except ValueError:
        return None
    return items if isinstance(items, list) else None
