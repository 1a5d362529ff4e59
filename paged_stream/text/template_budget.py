"""What one rendering of a chat template may use: processor time, and memory for what it makes."""

from __future__ import annotations

import time
from collections.abc import Collection, ItemsView, KeysView, Mapping, ValuesView
from dataclasses import dataclass
from itertools import chain
from typing import Any

from jinja2.utils import Namespace

_SECONDS = 5.0
_SECONDS_PER_UNIT = 4e-6
_LARGEST = 4 << 20  # units of one value, for the smallest conversation
_LARGEST_PER_UNIT = 16
_ALL_VALUES = 16  # times the largest one
_UNITS_PER_ITEM = 8  # of a list or dict; a unit is a character
_DEPTH = 100  # of lists within lists
_BITS = 1 << 14  # of an integer


class TemplateLimitError(Exception):
    """A template wants more than it may have. No kind of error that Jinja's filters catch."""


@dataclass(frozen=True, slots=True)
class Size:
    """A value as a tree: what it refers to twice counts twice.

    Args:
        chars: characters and bytes in it.
        items: values in it, itself included.
        depth: of lists within lists.
    """

    chars: int
    items: int
    depth: int

    @property
    def units(self) -> int:
        """How much memory it would take, written out."""
        return self.chars + self.items * _UNITS_PER_ITEM


class Budget:
    """What is left for one rendering, in the thread that makes it.

    No step of a rendering is longer than the largest value allows, and between two steps is a
    `tick`, so the time is bounded without any other thread. It is processor time, as a busy machine
    must not change what is refused.

    Args:
        given: all that the template is given; more of it allows for more work.
    """

    def __init__(self, given: Any = None) -> None:
        self.largest = 1 << 62
        self._end = float("inf")
        units = self.measure(given).units
        self.largest = _LARGEST + _LARGEST_PER_UNIT * units
        self._left = _ALL_VALUES * self.largest
        self._seconds = _SECONDS + _SECONDS_PER_UNIT * units
        self._end = time.thread_time() + self._seconds

    def tick(self) -> None:
        """Note that a step was made.

        Raises:
            TemplateLimitError: the time is over.
        """
        if time.thread_time() > self._end:
            raise TemplateLimitError(f"takes more than {self._seconds:.1f} s of processor time")

    def require(self, units: int) -> None:
        """Refuse to make a value that may become so large.

        Raises:
            TemplateLimitError: it may not.
        """
        if units > self.largest:
            raise TemplateLimitError(f"makes a value of more than {self.largest} characters")

    def charge(self, units: int, *, replaces: bool = False) -> None:
        """Note that something was made that takes so much memory.

        Args:
            replaces: it most likely takes the place of what it was made from, as in a text that
                grows piece by piece, so little of it counts.

        Raises:
            TemplateLimitError: it is too much, or too much together with all that was made before.
        """
        self.tick()
        self.require(units)
        self._left -= units // _ALL_VALUES if replaces else units
        if self._left < 0:
            raise TemplateLimitError(
                f"makes values of more than {_ALL_VALUES * self.largest} characters"
            )

    def measure(self, value: Any) -> Size:
        """The size of a value.

        Raises:
            TemplateLimitError: no value may be so large.
        """
        chars = items = deepest = 0
        waiting = [(value, 1)]
        while waiting:
            item, depth = waiting.pop()
            items, deepest = items + 1, max(deepest, depth)
            if isinstance(item, str | bytes):
                chars += len(item)
            elif isinstance(item, int):
                self.require_bits(item.bit_length())
            elif inner := _inside(item):
                if depth == _DEPTH:
                    raise TemplateLimitError(f"nests values in more than {_DEPTH} levels")
                self.require(items + len(inner))
                waiting += [(each, depth + 1) for each in inner]
            self.require(chars + items * _UNITS_PER_ITEM)
            if items % 1024 == 0:
                self.tick()
        return Size(chars, items, deepest)

    def require_bits(self, bits: int) -> None:
        """Refuse an integer of so many bits.

        Raises:
            TemplateLimitError: it is too large.
        """
        if bits > _BITS:
            raise TemplateLimitError(f"makes an integer of more than {_BITS} bits")


def _inside(value: Any) -> Collection[Any] | None:
    """What a value is made of; ``None`` if that is nothing."""
    if isinstance(value, Namespace):
        value = object.__getattribute__(value, "_Namespace__attrs")
    if isinstance(value, Mapping):
        return list(chain(value, value.values()))
    if isinstance(value, list | tuple | set | frozenset | KeysView | ValuesView | ItemsView):
        return value
    return None
