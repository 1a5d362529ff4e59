"""Anything from outside as a few printable characters, for error messages."""

from __future__ import annotations

from collections.abc import Sequence

_LARGEST_INT_BITS = 256  # beyond, Python may refuse to write one in decimal
_HEAD, _TAIL = 80, 30  # characters
_LONGEST_MESSAGE = 400  # characters
_MOST_NAMES = 20


def short(value: object) -> str:
    """What a value says, on one line, without control characters, and cut in the middle if it is
    long."""
    if isinstance(value, int) and value.bit_length() > _LARGEST_INT_BITS:
        return f"an integer of {value.bit_length()} bits"
    if isinstance(value, list | tuple | dict | set) and len(value) > _TAIL:
        return f"a {type(value).__name__} of {len(value)} items"
    try:
        text = value if isinstance(value, str) else str(value)
    except (ValueError, RecursionError):  # it holds a larger integer, or itself
        return f"a {type(value).__name__}"
    if len(text) > _HEAD + _TAIL:
        text = f"{text[:_HEAD]}…{text[-_TAIL:]}"
    return _printable(text)


def short_error(error: BaseException) -> str:
    """What an error says, on one line, without control characters, and cut at its end if it is
    long. One that says nothing is told by its kind."""
    try:
        text = " ".join(str(error).split())
    except Exception:  # of its own `__str__`
        text = ""
    if len(text) > _LONGEST_MESSAGE:
        text = f"{text[:_LONGEST_MESSAGE]}…"
    return _printable(text) or type(error).__name__


def some(names: Sequence[str]) -> str:
    """The first few of many names from outside, and how many others there are."""
    return first_few([short(name) for name in names], ", ")


def first_few(texts: Sequence[str], separator: str) -> str:
    """The first few of many texts of our own, and how many others there are."""
    text = separator.join(texts[:_MOST_NAMES])
    return text if len(texts) <= _MOST_NAMES else f"{text} and {len(texts) - _MOST_NAMES} more"


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
