"""What is counted while streams live."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Tally:
    """Counts of one world.

    Attributes:
        operations: by name.
        ends: how operations ended: done, cut off, interrupted, or refused with an error.
        compared: streams that were compared at their end, and tokens of them.
        lost: streams that ended with an error, by its text.
        mismatches: differences between a stream and its undisturbed twin.
        unexpected: errors that no fault explains.
    """

    operations: Counter[str] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)
    compared: Counter[str] = field(default_factory=Counter)
    lost: Counter[str] = field(default_factory=Counter)
    mismatches: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)

    @property
    def is_clean(self) -> bool:
        return not self.mismatches and not self.unexpected

    def row(self) -> dict[str, Any]:
        return {
            "operations": self.operations.total(),
            "operations_by_name": dict(self.operations),
            "ends": dict(self.ends),
            "streams_compared": self.compared["streams"],
            "tokens_compared": self.compared["tokens"],
            "streams_lost": dict(self.lost),
            "mismatches": len(self.mismatches),
            "unexpected_errors": len(self.unexpected),
        }
