"""Pictures of what the evaluations found, as PNG (or whatever the file's ending says).

matplotlib is an extra, imported when the first picture is drawn.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from paged_stream.evaluation.perplexity import perplexity_of
from paged_stream.evaluation.report import Row

# Predictions that a point of a curve is the mean of, at least: spans with fewer are joined.
_POINT = 64


def pyplot() -> Any:
    """matplotlib.pyplot, which draws to files only.

    Raises:
        ImportError: says what to install.
    """
    try:
        import matplotlib
    except ImportError:
        raise ImportError(
            "plots need matplotlib; install it with `pip install 'paged-stream[eval]'`"
        ) from None
    matplotlib.use("Agg")
    import matplotlib.pyplot

    return matplotlib.pyplot


def save(figure: Any, path: Path) -> None:
    """Write the picture and forget it.

    Raises:
        ValueError: a file whose ending names no format.
    """
    try:
        figure.savefig(path, dpi=100)
    finally:
        pyplot().close(figure)


def curve(spans: Iterable[dict[str, Any]]) -> tuple[list[int], list[float]]:
    """Positions, and perplexities up to there from the one before."""
    positions: list[int] = []
    values: list[float] = []
    nll, count, spans = 0.0, 0, list(spans)
    for span in spans:
        nll, count = nll + span["nll"], count + span["count"]
        is_only = span is spans[-1] and not positions
        perplexity = perplexity_of(nll, count)
        if perplexity is not None and (count >= _POINT or is_only):
            positions.append(span["stop"])
            values.append(perplexity)
            nll, count = 0.0, 0
    return positions, values


def plot_curves(rows: Sequence[Row], path: Path) -> None:
    """Perplexity against position on a log scale, one line per variant: the paper's figure 3."""
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for row in rows:
        sampled = row["scored"] < row["tokens"] / 2  # so the line is unsteady
        style = {"linestyle": ":", "marker": ".", "alpha": 0.7} if sampled else {}
        axes.plot(*curve(row["spans"]), label=row["variant"], linewidth=1.2, **style)
    axes.set(yscale="log", xlabel="tokens", ylabel="perplexity")
    axes.grid(axis="y", which="both", alpha=0.3)
    axes.legend(title="sinks + window")
    save(figure, path)


def plot_ablation(rows: Sequence[Row], path: Path) -> None:
    """Perplexity over all tokens, one bar per variant."""
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    values = [row["perplexity"] or 0.0 for row in rows]
    bars = axes.bar([row["variant"] for row in rows], values)
    axes.bar_label(bars, fmt="%.2f")
    is_steep = max(values) > 20 * min(values)
    axes.set(yscale="log" if is_steep else "linear", xlabel="sinks + window", ylabel="perplexity")
    save(figure, path)


def plot_long(row: Row, path: Path) -> None:
    """Perplexity, time per token and resident memory of one stream against its length."""
    plt = pyplot()
    spans = row["spans"]
    tokens = [span["stop"] for span in spans]
    figure, (top, middle, bottom) = plt.subplots(
        3, 1, sharex=True, figsize=(7, 7), layout="constrained"
    )
    top.plot(*curve(spans), linewidth=1.0)
    top.set(yscale="log", ylabel="perplexity", title=f"One stream, {row['variant']}")
    speeds = [1e6 * span["seconds"] / (span["stop"] - span["start"]) for span in spans]
    middle.plot(tokens, speeds, color="tab:green", linewidth=1.0)
    middle.set(ylabel="µs per token", ylim=(0, 1.5 * sorted(speeds)[len(speeds) // 2]))
    resident = [span["rss"] / 2**20 for span in spans]
    bottom.plot(tokens, resident, color="tab:orange", linewidth=1.0)
    bottom.set(ylabel="resident MiB", ylim=(0, 1.2 * max(resident)), xlabel="tokens in the stream")
    save(figure, path)


def plot_recall(rows: Sequence[Row], path: Path) -> None:
    """Recall against the distance of what is asked for, one line per cache."""
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for name in dict.fromkeys(row["variant"] for row in rows):
        points = [row for row in rows if row["variant"] == name]
        distances = [row["distance"] for row in points]
        axes.plot(distances, [100 * row["recall"] for row in points], marker="o", label=name)
    axes.set(xlabel="lines between an answer and its question", ylabel="recall, %", ylim=(-3, 103))
    axes.grid(alpha=0.3)
    axes.legend(title="sinks + window")
    save(figure, path)


def plot_rounds(rows: Sequence[Row], path: Path) -> None:
    """Answers that were right so far, against the length of the dialogue."""
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for row in rows:
        hits = row["hits"]
        share = [100 * sum(hits[: i + 1]) / (i + 1) for i in range(len(hits))]
        axes.plot(range(1, len(hits) + 1), share, label=row["variant"])
    axes.set(xlabel="rounds", ylabel="exact match so far, %", ylim=(-3, 103))
    axes.grid(alpha=0.3)
    axes.legend(title="sinks + window")
    save(figure, path)


def plot_attention(
    logits: Any, layers: Sequence[int], heads: Sequence[int], shares: Any, path: Path
) -> None:
    """Average attention logits of some layers and heads (the paper's figure 2), and below, how
    much of the attention each sink token gets, layer by layer.

    Args:
        logits: [layers, heads, T, T], NaN where a query sees no key; indexed as ``layers`` and
            ``heads`` say.
        shares: [all layers, S].
    """
    plt = pyplot()
    width = max(len(layers), 2)
    figure = plt.figure(figsize=(2.2 * width, 2.2 * len(heads) + 3), layout="constrained")
    grid = figure.add_gridspec(len(heads) + 1, len(layers), height_ratios=[2] * len(heads) + [2.5])
    for column, layer in enumerate(layers):
        for row, head in enumerate(heads):
            axes = figure.add_subplot(grid[row, column])
            picture = axes.imshow(logits[column, row].numpy(), cmap="viridis")
            axes.set(title=f"layer {layer}, head {head}", xticks=[], yticks=[])
            axes.title.set_fontsize(8)
            figure.colorbar(picture, ax=axes, shrink=0.7).ax.tick_params(labelsize=6)
    axes = figure.add_subplot(grid[len(heads), :])
    below = [0.0] * len(shares)
    for sink in range(shares.shape[1]):
        part = shares[:, sink].tolist()
        axes.bar(range(len(part)), part, bottom=below, label=f"token {sink}")
        below = [a + b for a, b in zip(below, part, strict=True)]
    axes.set(xlabel="layer", ylabel="share of attention", ylim=(0, 1))
    axes.legend(fontsize=7, ncols=shares.shape[1])
    save(figure, path)
