"""Plots of results, as small PNG files beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import RESULTS
from paged_stream.evaluation.plot_style import pyplot, save

Rows = Sequence[Mapping[str, Any]]


def plot_stream(points: Rows, folder: Path = RESULTS) -> None:
    """Time per token and resident memory against the length of a stream."""
    tokens = [point["tokens"] for point in points]
    figure, (top, bottom) = pyplot().subplots(
        2, 1, sharex=True, figsize=(8, 5.5), layout="constrained"
    )
    figure.suptitle("One stream, far past its window (tiny random model)")
    top.plot(tokens, [point["us_per_token"] for point in points])
    top.set(ylabel="time per token (µs)", ylim=(0, None))
    resident = [point["rss"] / 2**20 for point in points]
    bottom.plot(tokens, resident, color="C1")
    bottom.set(ylabel="resident memory (MiB)", ylim=(0, 1.2 * max(resident)), xlim=(0, None))
    bottom.set_xlabel("position in the stream (tokens)")
    bottom.xaxis.set_major_formatter("{x:,.0f}")
    save(figure, folder / "stream.png")


def plot_recompute(rows: Rows, folder: Path = RESULTS) -> None:
    """Time per token against the size of the cache, streaming and by recomputation."""
    sizes = [row["cache_size"] for row in rows]
    figure, axes = pyplot().subplots(figsize=(8, 4.5), layout="constrained")
    for field, label in (
        ("transformers_seconds", "window recomputed, transformers"),
        ("recompute_seconds", "window recomputed, this engine"),
        ("streaming_seconds", "streaming"),
    ):
        axes.plot(sizes, [1e3 * row[field] for row in rows], marker="o", label=label)
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.set(
        title="Generating far past the window",
        yscale="log",
        xlabel="visible to each token (tokens)",
        ylabel="time per generated token (ms, log scale)",
    )
    axes.yaxis.set_major_formatter("{x:,g}")
    axes.legend()
    save(figure, folder / "recompute.png")


def plot_gpu(rows: Rows, folder: Path) -> None:
    """Throughput against the number of streams, and streaming against recomputation."""
    figure, (left, right) = pyplot().subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    for axes, field in ((left, "streams"), (right, "cache")):
        points = [row for row in rows if field in row]
        for shape in dict.fromkeys(row["shape"] for row in points):
            mine = sorted((row[field], row["value"]) for row in points if row["shape"] == shape)
            axes.plot(*zip(*mine, strict=True), marker="o", label=shape)
        if points:
            axes.legend()
        axes.set_xscale("log", base=2)
        axes.set(yscale="log")
    left.set(
        title="Throughput", xlabel="streams", ylabel="tokens per second, all streams (log scale)"
    )
    right.set(
        title="Recomputing the window against streaming",
        xlabel="visible to each token (tokens)",
        ylabel="ratio of the times per token (log scale)",
    )
    save(figure, folder / "gpu_check.png")
