"""Kinds of fields that settings have: what each takes, and how text stands for it.

`Kind.check` returns a value as its field keeps it, or raises `ValueError` with the field, the value
and what is allowed. `Kind.parse` reads the text of a command line, a variable or a file.
"""

from __future__ import annotations

import json
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from numbers import Integral, Real
from typing import Any, ClassVar, Literal

# How an option takes its value: in one word, as --name and --no-name, in one word each time the
# option is given, or in all words up to the next option.
Words = Literal["one", "switch", "repeated", "several"]
LARGEST_INT = (1 << 63) - 1
_LARGEST = 1e30
_UNITS = {
    "b": 1,
    **{f"{letter}b": 1000**power for power, letter in enumerate("kmgt", start=1)},
    **{f"{letter}ib": 1024**power for power, letter in enumerate("kmgt", start=1)},
}
_SWITCHES = {"true": True, "1": True, "false": False, "0": False}


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind(ABC):
    """What a field takes.

    Args:
        optional: whether ``None`` is allowed. In text, it is ``none``.
    """

    optional: bool = False
    words: ClassVar[Words] = "one"
    metavar: ClassVar[str] = "TEXT"
    json_type: ClassVar[Any] = str

    @property
    @abstractmethod
    def allowed(self) -> str:
        """What is allowed, in words, without ``None``."""

    def check(self, name: str, value: Any) -> Any:
        """The value as a field of this name keeps it.

        Raises:
            ValueError: names the field, the value and what is allowed.
        """
        return None if value is None and self.optional else self._check(name, value)

    def parse(self, text: str) -> Any:
        """The value that a text stands for; text that stands for none is left for `check`."""
        return None if self.optional and text.lower() == "none" else self._parse(text)

    @abstractmethod
    def _check(self, name: str, value: Any) -> Any: ...

    def _parse(self, text: str) -> Any:
        return text

    @property
    def _or_none(self) -> str:
        return " or None" if self.optional else ""


@dataclass(frozen=True, slots=True)
class Integer(Kind):
    """An integer, of numpy perhaps; a bool is none."""

    low: int | None = None
    high: int | None = None
    metavar: ClassVar[str] = "N"
    json_type: ClassVar[Any] = int

    @property
    def allowed(self) -> str:
        if self.high is not None:
            most = "2**63 - 1" if self.high == LARGEST_INT else self.high
            return f"int in [{self.low}, {most}]"
        return "int" if self.low is None else f"int >= {self.low}"

    def _check(self, name: str, value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, Integral):
            raise ValueError(f"{name} must be an int{self._or_none}, got {value!r}")
        number = int(value)
        if self.low is not None and number < self.low:
            raise ValueError(f"{name} must be >= {self.low}, got {number}")
        if self.high is not None and number > self.high:
            raise ValueError(f"{name} must be <= {self.high}, got {number}")
        return number

    def _parse(self, text: str) -> int | str:
        return int(text) if re.fullmatch(r"\s*[+-]?[0-9]+\s*", text) else text


def as_int(name: str, value: Any, low: int | None = None) -> int:
    """Check an argument as `Integer` does."""
    number: int = Integer(low).check(name, value)
    return number


@dataclass(frozen=True, slots=True)
class Bytes(Integer):
    """A number of bytes: an integer, or text such as ``"4GiB"``, ``"1.5 GB"`` or ``"4096"``.

    Units are B; kB, MB, GB and TB in powers of 1000; KiB, MiB, GiB and TiB in powers of 1024. Case
    does not matter. A fraction of a byte is dropped.
    """

    metavar: ClassVar[str] = "BYTES"

    @property
    def allowed(self) -> str:
        return f"bytes >= {self.low}, such as 4GiB"

    def _check(self, name: str, value: Any) -> int:
        if isinstance(value, str):
            match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([a-z]*)\s*", value, re.I | re.A)
            unit = match[2].lower() if match else "?"
            if match is None or (unit and unit not in _UNITS):
                raise ValueError(
                    f"{name} must be a number of bytes or a size such as '512MiB', '4GiB' or "
                    f"'4GB', got {value!r}"
                )
            value = int(Decimal(match[1]) * _UNITS.get(unit, 1))
        return Integer._check(self, name, value)

    def _parse(self, text: str) -> str:
        return text


@dataclass(frozen=True, slots=True)
class Number(Kind):
    """A number, of numpy perhaps, and finite unless ``infinite`` is true."""

    low: float
    high: float = math.inf
    open_low: bool = field(default=False, kw_only=True)
    infinite: bool = field(default=False, kw_only=True)
    metavar: ClassVar[str] = "X"
    json_type: ClassVar[Any] = float

    @property
    def allowed(self) -> str:
        return f"number in {self._span}"

    @property
    def _span(self) -> str:
        end = ")" if self.high == math.inf and not self.infinite else "]"
        return f"{'(' if self.open_low else '['}{self.low:g}, {self.high:g}{end}"

    def _check(self, name: str, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, Real):
            raise ValueError(f"{name} must be a number{self._or_none}, got {value!r}")
        number = value if isinstance(value, int | float) else float(value)
        above = number > self.low if self.open_low else number >= self.low
        highest = self.high if self.infinite else min(self.high, _LARGEST)
        if not (above and number <= highest):  # NaN fails as well
            raise ValueError(f"{name} must be in {self._span}, got {value!r}")
        return number

    def _parse(self, text: str) -> float | str:
        try:
            return float(text)
        except ValueError:
            return text


@dataclass(frozen=True, slots=True)
class Switch(Kind):
    """True or False, of numpy perhaps."""

    words: ClassVar[Words] = "switch"
    json_type: ClassVar[Any] = bool

    @property
    def allowed(self) -> str:
        return "true or false"

    def _check(self, name: str, value: Any) -> bool:
        of_numpy = (
            str(getattr(value, "dtype", "")) == "bool" and getattr(value, "shape", None) == ()
        )
        if not isinstance(value, bool) and not of_numpy:
            raise ValueError(f"{name} must be a bool, got {value!r}")
        return bool(value)

    def _parse(self, text: str) -> bool | str:
        return _SWITCHES.get(text.lower(), text)


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
