"""Anything from outside as a few printable characters, for error messages."""

from __future__ import annotations

_LARGEST_INT_BITS = 256  # beyond, Python may refuse to write one in decimal
_HEAD, _TAIL = 80, 30  # characters


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
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
