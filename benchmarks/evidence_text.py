"""What the sections of docs/evidence.md are written with."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from paged_stream.evaluation.perplexity import perplexity_of

NAMES = {
    "smollm2": "SmolLM2-135M",
    "smollm2-135m-instruct": "SmolLM2-135M",
    "qwen": "Qwen2.5-Coder-0.5B",
    "qwen2.5-coder-0.5b": "Qwen2.5-Coder-0.5B",
}
Row = Mapping[str, Any]
Rows = Sequence[Row]


def number(value: float | None) -> str:
    """Three digits after the point at most, fewer of a large number."""
    if value is None:
        return "-"
    return f"{value:,.2f}" if value < 1000 else f"{value:,.0f}"


def percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def signed(ratio: float) -> str:
    return f"{100 * (ratio - 1):+.1f} %"


def claim(text: str, condition: bool) -> str:
    """A sentence that says whether something holds."""
    return f"The claim that {text} {'holds' if condition else '**does not hold**'}."


def command(rows: Rows) -> str:
    return f"    {rows[0]['command']}"


def picture(name: str, what: str) -> str:
    return f"![{what}](IMAGES/{name}.png)"


def by_variant(rows: Rows) -> dict[str, Row]:
    return {row["variant"]: row for row in rows}


def over(row: Row, start: int, stop: int) -> float:
    """Perplexity of a row's predictions in ``[start, stop)``, by its whole spans there."""
    spans = [s for s in row["spans"] if s["start"] >= start and s["stop"] <= stop]
    value = perplexity_of(math.fsum(s["nll"] for s in spans), sum(s["count"] for s in spans))
    return math.nan if value is None else value
