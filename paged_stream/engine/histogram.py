"""How often values came, in buckets, as monitoring systems add them up."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True, kw_only=True)
class Histogram:
    """Values that came until one moment. Those of several engines can be added.

    Args:
        bounds: the largest value of each bucket, in order; the last bucket has none.
        counts: how many values came, by bucket: one more than there are bounds.
        total: the sum of all values.
    """

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    total: float

    @property
    def num_values(self) -> int:
        """How many values came."""
        return sum(self.counts)

    def __add__(self, other: Histogram) -> Histogram:
        assert self.bounds == other.bounds, "only what has the same buckets can be added"
        counts = tuple(map(sum, zip(self.counts, other.counts, strict=True)))
        return replace(self, counts=counts, total=self.total + other.total)


class Tally:
    """A histogram that grows.

    Args:
        bounds: as in `Histogram`.
    """

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self._total = 0.0

    def add(self, value: float) -> None:
        """Count a value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._total += value

    def histogram(self) -> Histogram:
        """All values until now."""
        return Histogram(bounds=self._bounds, counts=tuple(self._counts), total=self._total)
