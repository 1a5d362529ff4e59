"""Scores as a table, as CSV and as JSON lines."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from paged_stream.evaluation.perplexity import Score, perplexity_of
from paged_stream.system.whole_files import write_whole

Row = dict[str, Any]


def summarize(scores: Sequence[Score]) -> list[Row]:
    """One row per variant: over all predictions, over those beyond the largest cache, and over
    those at which recomputation was sampled."""
    caches = [score.variant.cache_size or 0 for score in scores]
    beyond = min(max(caches), max(score.num_predictions for score in scores))
    rows = []
    for score in scores:
        variant = score.variant
        rows.append(
            {
                "variant": variant.name,
                "num_sink_tokens": variant.num_sink_tokens,
                "window_size": variant.window_size,
                "tokens": score.num_predictions,
                "scored": sum(span.count for span in score.spans),
                "perplexity": score.perplexity(),
                "beyond": beyond,
                "perplexity_beyond": score.perplexity(start=beyond),
                "perplexity_sampled": score.sampled_perplexity(),
                "seconds": score.seconds,
                "text_tokens": score.text_tokens,
                "spans": [asdict(span) for span in score.spans],
            }
        )
    return rows


def table(rows: Sequence[Row]) -> str:
    """What is printed at the end."""
    beyond = f"beyond {rows[0]['beyond']:,}"
    sampled = any(row["perplexity_sampled"] is not None for row in rows)
    head = ["sinks+window", "tokens", "perplexity", beyond, *["sampled"] * sampled, "tok/s"]
    lines = []
    for row in rows:
        speed = row["scored"] / row["seconds"] if row["seconds"] else 0.0
        line = [row["variant"], f"{row['scored']:,}", number(row["perplexity"])]
        line.append(number(row["perplexity_beyond"]))
        lines.append([*line, *[number(row["perplexity_sampled"])] * sampled, f"{speed:,.0f}"])
    return columns([head, *lines])


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.3f}"


def columns(lines: Sequence[Sequence[str]]) -> str:
    """Lines of cells, the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if index == 0 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def write_json(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """One JSON object per line; the file appears whole or not at all."""
    write_whole(path, ["".join(json.dumps(row) + "\n" for row in rows).encode()])


def write_curves(path: Path, rows: Sequence[Row]) -> None:
    """Perplexity against position as CSV, one line per variant and span."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["variant", "start", "stop", "perplexity", "seconds", "rss_bytes"])
        for row in rows:
            for span in row["spans"]:
                perplexity = perplexity_of(span["nll"], span["count"])
                cells = [span["start"], span["stop"], perplexity, span["seconds"], span["rss"]]
                writer.writerow([row["variant"], *cells])
