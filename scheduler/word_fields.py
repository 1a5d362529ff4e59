"""Kinds of fields that hold words or lists; see ``fields.py``."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from .fields import Integer, Kind, Words, as_int


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
