"""Plots of results, as small PNG files beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

from benchmarks.harness import RESULTS

matplotlib.use("Agg")

import matplotlib.pyplot as plt  # noqa: E402  (it opens the backend chosen above)


def plot_stream(points: list[dict[str, float]], folder: Path = RESULTS) -> None:
    """Time per token and resident memory against the length of a stream."""
    tokens = [point["tokens"] / 1000 for point in points]
    figure, (top, bottom) = plt.subplots(2, 1, sharex=True, figsize=(7, 5), layout="constrained")
    top.plot(tokens, [point["us_per_token"] for point in points])
    top.set(ylabel="µs per token", ylim=(0, None), title="One stream, far past its window")
    resident = [point["rss"] / 2**20 for point in points]
    bottom.plot(tokens, resident, color="tab:orange")
    bottom.set(ylabel="resident MiB", ylim=(0, 1.2 * max(resident)))
    bottom.set_xlabel("thousand tokens in the stream")
    _save(figure, folder / "stream.png")


def plot_recompute(rows: list[dict[str, Any]], folder: Path = RESULTS) -> None:
    """Time per token against the size of the cache, streaming and by recomputation."""
    sizes = [row["cache_size"] for row in rows]
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for field, label in (
        ("transformers_seconds", "window recomputed, transformers"),
        ("recompute_seconds", "window recomputed, this engine"),
        ("streaming_seconds", "streaming"),
    ):
        axes.plot(sizes, [1e3 * row[field] for row in rows], marker="o", label=label)
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.set(yscale="log", xlabel="cache size, tokens", ylabel="ms per generated token")
    axes.grid(axis="y", alpha=0.3)
    axes.legend()
    _save(figure, folder / "recompute.png")


def plot_gpu(rows: list[dict[str, Any]], folder: Path) -> None:
    """Throughput against the number of streams, and streaming against recomputation."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for axes, field in ((left, "streams"), (right, "cache")):
        points = [row for row in rows if field in row]
        for shape in dict.fromkeys(row["shape"] for row in points):
            mine = sorted((row[field], row["value"]) for row in points if row["shape"] == shape)
            axes.plot(*zip(*mine, strict=True), marker="o", label=shape)
        if points:
            axes.legend()
        axes.set_xscale("log", base=2)
        axes.set(yscale="log")
        axes.grid(alpha=0.3)
    left.set(xlabel="streams", ylabel="tokens per second, all together")
    right.set(xlabel="cache size, tokens", ylabel="recomputing over streaming, time per token")
    _save(figure, folder / "gpu_check.png")


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, dpi=100)
    plt.close(figure)
