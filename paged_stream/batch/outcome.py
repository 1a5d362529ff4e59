"""How a batch ends: its totals, and whether too many of its rows are bad."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

_ROWS_OF_A_SHARE = 1000  # that a share of bad rows is taken of, at least


@dataclass(slots=True, kw_only=True)
class Done:
    """What one run has computed, which is not what others have left to it.

    Args:
        new_rows: rows that engines were given, bad ones too.
        new_prompt_tokens: tokens of their prompts.
        new_output_tokens: tokens of their outputs.
        start_seconds: until the first engine was there.
        seconds: from then on.
    """

    new_rows: int = 0
    new_prompt_tokens: int = 0
    new_output_tokens: int = 0
    start_seconds: float = 0.0
    seconds: float = 0.0

    def add(self, counts: Mapping[str, int]) -> None:
        """Count a part."""
        self.new_rows += counts["new_rows"]
        self.new_prompt_tokens += counts["new_prompt_tokens"]
        self.new_output_tokens += counts["new_output_tokens"]

    def rates(self) -> dict[str, float]:
        """What was done per second, once an engine was there."""
        counts = {
            "rows": self.new_rows,
            "prompt_tokens": self.new_prompt_tokens,
            "output_tokens": self.new_output_tokens,
        }
        seconds = self.seconds
        return {
            f"{name}_per_second": count / seconds if seconds else 0.0
            for name, count in counts.items()
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchSummary:
    """What a batch has done, in the end.

    Args:
        num_rows: rows with output; ``num_bad`` have none, and a reason in ``errors``.
        num_parts: of shards, as they were committed.
        num_resumed: parts of them that were there before.
        done: by this run.
        has_too_many_bad: whether there are more bad rows than ``max_errors``. If the run ended
            early, its output is not complete.
    """

    output: str
    num_rows: int
    num_bad: int
    prompt_tokens: int
    output_tokens: int
    num_parts: int
    num_resumed: int
    done: Done
    has_too_many_bad: bool = False

    def to_json(self) -> dict[str, Any]:
        """For programs: all fields, and the rates."""
        fields = asdict(self)
        return {**fields, **fields.pop("done"), **self.done.rates()}

    def table(self) -> str:
        """For people."""
        per_second, done = self.done.rates().values(), self.done
        rates = "{:,.1f} rows, {:,.0f} tokens read, {:,.0f} written".format(*per_second)
        rows = [
            ("rows", f"{self.num_rows:,}"),
            ("bad rows", f"{self.num_bad:,}" + (" (see errors/)" if self.num_bad else "")),
            ("prompt tokens", f"{self.prompt_tokens:,}"),
            ("output tokens", f"{self.output_tokens:,}"),
            ("parts", f"{self.num_parts:,}, {self.num_resumed:,} of them from before"),
            ("seconds", f"{done.seconds:,.1f}, and {done.start_seconds:,.1f} to start"),
            ("per second", rates),
            ("output", f"{self.output}/data"),
        ]
        width = max(len(label) for label, _ in rows)
        return "\n".join(f"{label:<{width}}  {value}" for label, value in rows)


class ErrorBudget:
    """Counts rows until too many of them are bad.

    Args:
        limit: as ``max_errors`` of `BatchConfig`.
    """

    def __init__(self, limit: int | float | None, num_rows: int = 0, num_bad: int = 0) -> None:
        self._limit = limit
        self._num_rows = num_rows  # bad ones too
        self._num_bad = num_bad

    def add(self, num_rows: int, num_bad: int) -> None:
        self._num_rows += num_rows
        self._num_bad += num_bad

    @property
    def is_over(self) -> bool:
        """Whether there are too many of all rows so far."""
        limit = self._limit
        if isinstance(limit, float):
            limit = limit * self._num_rows
        return limit is not None and self._num_bad > limit

    @property
    def is_hopeless(self) -> bool:
        """Whether it is right to give up. A share of few rows says little."""
        is_share = isinstance(self._limit, float)
        return self.is_over and (not is_share or self._num_rows >= _ROWS_OF_A_SHARE)
