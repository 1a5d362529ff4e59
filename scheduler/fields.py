"""Checks that settings share. Each returns the value as its field keeps it, or raises `ValueError`
with the field, the value and what is allowed."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from numbers import Integral, Real
from typing import Any, overload

_LARGEST = 1e30
_UNITS = {
    "b": 1,
    **{f"{letter}b": 1000**power for power, letter in enumerate("kmgt", start=1)},
    **{f"{letter}ib": 1024**power for power, letter in enumerate("kmgt", start=1)},
}


def keep(settings: object, name: str, check: Callable[..., object], *args: Any, **how: Any) -> None:
    """Check a field of a frozen dataclass and keep what ``check`` makes of it."""
    object.__setattr__(settings, name, check(name, getattr(settings, name), *args, **how))


@overload
def as_int(name: str, value: Any, low: int | None = None, high: int | None = None) -> int: ...


@overload
def as_int(
    name: str,
    value: Any,
    low: int | None = None,
    high: int | None = None,
    *,
    optional: bool,
) -> int | None: ...


def as_int(
    name: str,
    value: Any,
    low: int | None = None,
    high: int | None = None,
    *,
    optional: bool = False,
) -> int | None:
    """An integer, of numpy perhaps; a bool is none."""
    if value is None and optional:
        return None
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise ValueError(f"{name} must be an int{' or None' if optional else ''}, got {value!r}")
    number = int(value)
    if low is not None and number < low:
        raise ValueError(f"{name} must be >= {low}, got {number}")
    if high is not None and number > high:
        raise ValueError(f"{name} must be <= {high}, got {number}")
    return number


def as_bytes(name: str, value: Any, low: int = 0, *, optional: bool = False) -> int | None:
    """A number of bytes: an integer, or text such as ``"4GiB"``, ``"1.5 GB"`` or ``"4096"``.

    Units are B; kB, MB, GB and TB in powers of 1000; KiB, MiB, GiB and TiB in powers of 1024. Case
    does not matter. A fraction of a byte is dropped.
    """
    if isinstance(value, str):
        match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([a-z]*)\s*", value, re.I | re.A)
        unit = match[2].lower() if match else "?"
        if match is None or (unit and unit not in _UNITS):
            raise ValueError(
                f"{name} must be a number of bytes or a size such as '512MiB', '4GiB' or '4GB', "
                f"got {value!r}"
            )
        value = int(Decimal(match[1]) * _UNITS.get(unit, 1))
    return as_int(name, value, low, optional=optional)


def as_float(
    name: str,
    value: Any,
    low: float,
    high: float = math.inf,
    *,
    open_low: bool = False,
    infinite: bool = False,
    optional: bool = False,
) -> float | None:
    """A number, of numpy perhaps, and finite unless ``infinite`` is true."""
    if value is None and optional:
        return None
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ValueError(f"{name} must be a number{' or None' if optional else ''}, got {value!r}")
    number = value if isinstance(value, int | float) else float(value)
    above = number > low if open_low else number >= low
    if not (above and number <= (high if infinite else min(high, _LARGEST))):  # NaN fails as well
        end = ")" if high == math.inf else "]"
        raise ValueError(
            f"{name} must be in {'(' if open_low else '['}{low:g}, {high:g}{end}, got {value!r}"
        )
    return number


def as_bool(name: str, value: Any) -> bool:
    """True or False, of numpy perhaps."""
    of_numpy = str(getattr(value, "dtype", "")) == "bool" and getattr(value, "shape", None) == ()
    if not isinstance(value, bool) and not of_numpy:
        raise ValueError(f"{name} must be a bool, got {value!r}")
    return bool(value)


def as_choice(
    name: str,
    value: Any,
    choices: Sequence[str | None],
    *,
    same: Mapping[str, str | None] | None = None,
    near: Mapping[str, str] | None = None,
) -> str | None:
    """One of ``choices``; a dtype of torch counts as its name.

    Args:
        same: other names, and the choices that they stand for.
        near: names that are refused, and the choices that were perhaps meant.
    """
    text = str(value).removeprefix("torch.") if type(value).__name__ == "dtype" else value
    if text is not None and not isinstance(text, str):
        text = ""
    if text is not None and text in (same or {}):
        text = (same or {})[text]
    if text not in choices:
        hint = (near or {}).get(text or "")
        raise ValueError(
            f"{name} must be one of {', '.join(map(str, choices))}, got {value!r}"
            + (f"; did you mean {hint!r}?" if hint else "")
        )
    return text


def changes_repr(settings: Any) -> str:
    """A dataclass as it could be written: only the fields that differ from their defaults."""
    values = ((field, getattr(settings, field.name)) for field in dataclasses.fields(settings))
    changed = (f"{field.name}={value!r}" for field, value in values if value != field.default)
    return f"{type(settings).__name__}({', '.join(changed)})"
