"""Kinds of fields that settings have: what each takes, and how text stands for it. Numbers and
switches are here, words and lists in ``word_fields.py``.

`Kind.check` returns a value as its field keeps it, or raises `ValueError` with the field, the value
and what is allowed. `Kind.parse` reads the text of a command line, a variable or a file.
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
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
    def json_range(self) -> dict[str, float]:
        """What numbers are allowed, in the keywords of JSON Schema."""
        return {}

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

    @property
    def json_range(self) -> dict[str, float]:
        ends = {"minimum": self.low, "maximum": self.high}
        return {name: end for name, end in ends.items() if end is not None}

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

    @property
    def json_range(self) -> dict[str, float]:
        ends = {"exclusiveMinimum" if self.open_low else "minimum": self.low, "maximum": self.high}
        return {name: end for name, end in ends.items() if math.isfinite(end)}

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
