"""How large the result of a filter, a method or an operator may become, before it is computed."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import permutations
from typing import Any, TypeAlias

from paged_stream.text.template_budget import Budget

# Of the value that is worked on, and the other arguments: units that the result has at most.
Estimate: TypeAlias = Callable[[Budget, Any, Sequence[Any]], int]

_SLOW_UNITS = 1 << 16


def check_growth(budget: Budget, name: str, value: Any, others: Sequence[Any]) -> None:
    """Refuse to call what might make too much.

    Args:
        name: of the filter, of the method of ``value``, or of the operator.
        others: all other arguments.

    Raises:
        TemplateLimitError: the result may be too large.
    """
    for each in others:
        if isinstance(each, int):
            budget.require(abs(each))
    if (estimate := _ESTIMATES.get(name)) is not None:
        budget.require(estimate(budget, value, others))


def check_operation(budget: Budget, operator: str, left: Any, right: Any) -> None:
    """Refuse to compute what might make too much, or take too long.

    Raises:
        TemplateLimitError: it might.
    """
    if isinstance(left, int) and isinstance(right, int):
        bits = max(left.bit_length(), right.bit_length())
        if operator == "*":
            bits = left.bit_length() + right.bit_length()
        elif operator == "**":
            bits = left.bit_length() * max(right, 1)
        budget.require_bits(bits)
    elif operator == "*":
        times, value = (left, right) if isinstance(left, int) else (right, left)
        if isinstance(times, int) and not isinstance(value, float):
            budget.require(budget.measure(value).units * max(times, 0))
    elif operator == "%" and isinstance(left, str | bytes):
        budget.require(_formatted(budget, left, [right]))


def _text(budget: Budget, value: Any) -> str:
    """A value as filters take it for a text."""
    budget.measure(value)
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


def _replaced(budget: Budget, value: Any, others: Sequence[Any]) -> int:
    text = _text(budget, value)
    old, new = (_text(budget, each) for each in [*others, "", ""][:2])
    return len(text) + text.count(old) * len(new)


def _joined(budget: Budget, value: Any, others: Sequence[Any]) -> int:
    sizes = [budget.measure(each) for each in (value, *others)]  # of the texts and what is between
    repeated = (one.items * other.units for one, other in permutations(sizes, 2))
    return sum(size.chars for size in sizes) + max(repeated, default=0)


def _formatted(budget: Budget, value: Any, others: Sequence[Any]) -> int:
    text = _text(budget, value)
    widths = sum(int(digits[:18]) for digits in re.findall(r"\d+", text))
    fields, size = text.count("%") + text.count("{"), budget.measure(list(others))
    given = [*others, *(each for other in others if isinstance(other, tuple) for each in other)]
    numbers = sum(abs(each) for each in given if isinstance(each, int))
    return (
        len(text)
        + widths
        + fields * (size.units + (numbers if "*" in text else 0))
        + (numbers if "{" in text else 0)
    )


def _indented(budget: Budget, value: Any, others: Sequence[Any]) -> int:
    text = _text(budget, value)
    return len(text) + len(text.splitlines()) * _extent(budget, [*others, 4])


def _tabbed(budget: Budget, value: Any, others: Sequence[Any]) -> int:
    text = _text(budget, value)
    return len(text) + text.count("\t") * _extent(budget, [*others, 8])


def _translated(budget: Budget, value: Any, others: Sequence[Any]) -> int:
    return len(_text(budget, value)) * budget.measure(list(others)).units


def _as_json(budget: Budget, value: Any, others: Sequence[Any]) -> int:
    size = budget.measure(value)
    return 6 * size.chars + size.items * (2 + size.depth * _extent(budget, others))


def _extent(budget: Budget, others: Sequence[Any]) -> int:
    """How much these numbers and texts may put between others."""
    numbers = sum(abs(each) for each in others if isinstance(each, int))
    return numbers + budget.measure(list(others)).chars


def _rounded(budget: Budget, value: Any, others: Sequence[Any]) -> int:
    budget.require_bits(4 * _extent(budget, others))
    return 0


def _slow(budget: Budget, value: Any, others: Sequence[Any]) -> int:
    """Of what is written in Python or takes time that grows with the square of the size."""
    budget.require(budget.measure([value, *others]).units * budget.largest // _SLOW_UNITS)
    return 0


_ESTIMATES: dict[str, Estimate] = {
    "replace": _replaced,
    "join": _joined,
    "format": _formatted,
    "format_map": _formatted,
    "indent": _indented,
    "expandtabs": _tabbed,
    "translate": _translated,
    "tojson": _as_json,
    "round": _rounded,
    **dict.fromkeys(
        ("pprint", "striptags", "sum", "unescape", "urlize", "wordwrap", "xmlattr"), _slow
    ),
}
