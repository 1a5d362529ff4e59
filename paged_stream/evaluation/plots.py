"""Pictures of what the evaluations found, as PNG or in the format that the file's ending names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from paged_stream.evaluation.perplexity import perplexity_of
from paged_stream.evaluation.plot_style import (
    COLOURS,
    log_scale,
    model_name,
    pyplot,
    save,
    thousands,
)

Row = Mapping[str, Any]  # of a result file

# A point of a curve is the mean of at least this many predictions; smaller spans are joined.
_POINT = 64
_SIZE = (8, 4.5)  # inches


def curve(spans: Iterable[dict[str, Any]]) -> tuple[list[int], list[float]]:
    """Return positions, and at each the perplexity since the position before."""
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
    """Draw perplexity against position on a log scale, one line per variant: the paper's figure 3.

    A dashed line marks where the caches are full, so that the first token leaves the window.
    """
    figure, axes = pyplot().subplots(figsize=_SIZE, layout="constrained")
    for row in rows:
        sampled = row["scored"] < row["tokens"] / 2  # so the line is unsteady
        style = {"linestyle": ":", "marker": ".", "alpha": 0.8} if sampled else {}
        axes.plot(*curve(row["spans"]), label=_variant(row), linewidth=1.5, **style)
    axes.set(
        title=f"{model_name(rows[0]['model'])}: perplexity along one text",
        xlabel="position in the text (tokens)",
        ylabel="perplexity since the last point (log scale)",
        xlim=(0, None),
    )
    log_scale(axes)
    thousands(axes.xaxis)
    _mark_full_caches(axes, rows)
    axes.legend(title="visible to each token")
    save(figure, path)


def plot_ablation(rows: Sequence[Row], path: Path) -> None:
    """Draw perplexity over all tokens, one bar per variant."""
    figure, axes = pyplot().subplots(figsize=_SIZE, layout="constrained")
    values = [row["perplexity"] or 0.0 for row in rows]
    bars = axes.bar([row["variant"] for row in rows], values, width=0.6)
    axes.bar_label(bars, fmt="%.2f", padding=2)
    axes.set(
        title=f"{model_name(rows[0]['model'])}: perplexity over {rows[0]['tokens']:,} tokens",
        xlabel="visible to each token (sink tokens + window)",
        ylabel="perplexity",
    )
    axes.grid(visible=False, axis="x")
    if max(values) > 20 * min(values):
        log_scale(axes)
    else:
        axes.set_ylim(0, 1.1 * max(values))
    save(figure, path)


def plot_long(row: Row, path: Path) -> None:
    """Draw perplexity, time per token and resident memory of one stream against its length."""
    spans = row["spans"]
    tokens = [span["stop"] for span in spans]
    figure, (top, middle, bottom) = pyplot().subplots(
        3, 1, sharex=True, figsize=(8, 7.5), layout="constrained"
    )
    figure.suptitle(
        f"{model_name(row['model'])}: one stream of {row['tokens']:,} tokens, {_variant(row)}"
    )
    top.plot(*curve(spans), linewidth=1.0, color=COLOURS[0])
    top.set(ylabel="perplexity (log scale)")
    log_scale(top)
    speeds = [1e6 * span["seconds"] / (span["stop"] - span["start"]) for span in spans]
    middle.plot(tokens, speeds, color=COLOURS[1], linewidth=1.0)
    highest = 1.5 * sorted(speeds)[len(speeds) // 2]
    middle.set(ylabel="time per token (µs)", ylim=(0, highest))
    if max(speeds) > highest:
        middle.set_title("peaks beyond the frame are cut off", fontsize="x-small", loc="right")
    resident = [span["rss"] / 2**20 for span in spans]
    bottom.plot(tokens, resident, color=COLOURS[2], linewidth=1.0)
    bottom.set(
        ylabel="resident memory (MiB)",
        ylim=(0, 1.2 * max(resident)),
        xlabel="position in the stream (tokens)",
    )
    for axes in (middle, bottom):
        thousands(axes.yaxis)
    thousands(bottom.xaxis)
    save(figure, path)


def plot_recall(rows: Sequence[Row], path: Path) -> None:
    """Draw recall against the distance to the line that is asked for, one line per cache.

    A point is hollow if no question there was about a line that was still visible. A dotted line
    in the cache's colour shows where its window ends.
    """
    figure, axes = pyplot().subplots(figsize=_SIZE, layout="constrained")
    distances = sorted({row["distance"] for row in rows})
    names = list(dict.fromkeys(row["variant"] for row in rows))
    for number, name in enumerate(names):
        colour = COLOURS[number % len(COLOURS)]
        points = [row for row in rows if row["variant"] == name]
        points.sort(key=lambda row: row["distance"])
        # Distances stand evenly spaced, whatever they are.
        x = [distances.index(row["distance"]) for row in points]
        axes.plot(x, [100 * row["recall"] for row in points], color=colour, linewidth=1.5)
        for at, row in zip(x, points, strict=True):
            inside = colour if row["visible"] else "white"
            axes.plot(at, 100 * row["recall"], "o", color=colour, markerfacecolor=inside)
        axes.plot([], [], "o-", color=colour, label=name)
        if (end := _window_end(points, x)) is not None:
            axes.axvline(end, color=colour, linestyle=":", linewidth=1.5)
    axes.plot([], [], "o", color="0.4", markerfacecolor="white", label="line no longer visible")
    axes.plot([], [], ":", color="0.4", label="end of the window")
    axes.set(
        title=f"{model_name(rows[0]['model'])}: asked for a line of the stream",
        xlabel="lines that came after it",
        ylabel="answered correctly (%)",
        ylim=(-3, 103),
    )
    axes.set_xticks(range(len(distances)), [str(distance) for distance in distances])
    axes.legend(title="sink tokens + window")
    save(figure, path)


def _window_end(points: Sequence[Row], x: Sequence[int]) -> float | None:
    """Where the lines that are asked for leave the window: at the first distance at which some
    have, or right before it if all have. ``None`` if none has."""
    for at, row in zip(x, points, strict=True):
        if row["gone"]:
            return at if row["visible"] else at - 0.5
    return None


def plot_rounds(rows: Sequence[Row], path: Path) -> None:
    """Draw the share of correct answers so far against the number of questions."""
    figure, axes = pyplot().subplots(figsize=_SIZE, layout="constrained")
    for row in rows:
        hits = row["hits"]
        share = [100 * sum(hits[: i + 1]) / (i + 1) for i in range(len(hits))]
        axes.plot(range(1, len(hits) + 1), share, label=row["variant"], linewidth=1.5)
    axes.set(
        title=f"{model_name(rows[0]['model'])}: questions in one stream",
        xlabel="questions asked",
        ylabel="answered correctly so far (%)",
        xlim=(0, None),
        ylim=(-3, 103),
    )
    axes.legend(title="sink tokens + window")
    save(figure, path)


def plot_attention(
    logits: Any, layers: Sequence[int], heads: Sequence[int], shares: Any, path: Path, *, model: str
) -> None:
    """Draw average attention logits of some layers and heads (the paper's figure 2), and below,
    how much of the attention each sink token gets, layer by layer.

    Args:
        logits: [layers, heads, T, T], NaN where a query sees no key; indexed as ``layers`` and
            ``heads`` say.
        shares: [all layers, S], averaged over heads.
        model: name for the title.
    """
    plt = pyplot()
    columns, rows = len(layers), len(heads)
    figure = plt.figure(figsize=(2.5 * max(columns, 3), 2.6 * rows + 3.2), layout="constrained")
    figure.suptitle(f"{model_name(model)}: where attention goes")
    above, below = figure.subfigures(2, 1, height_ratios=[2.6 * rows, 3.2])
    grid = above.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    for column, layer in enumerate(layers):
        for row, head in enumerate(heads):
            _plot_map(above, grid[row, column], logits[column, row].numpy(), layer, head)
    above.supxlabel("position of the key (tokens)", fontsize="medium")
    above.supylabel("position of the query", fontsize="medium")
    _plot_shares(below.subplots(), shares)
    save(figure, path)


def _plot_map(figure: Any, axes: Any, values: Any, layer: int, head: int) -> None:
    picture = axes.imshow(values, cmap="viridis")
    axes.set_title(f"layer {layer}, head {head}", fontsize="small")
    axes.grid(visible=False)
    step = max(1, len(values) // 4)
    ticks = range(0, len(values), step)
    axes.set(xticks=ticks, yticks=ticks)
    bar = figure.colorbar(picture, ax=axes, shrink=0.6, aspect=12)
    bar.ax.tick_params(labelsize=7)
    bar.ax.set_title("logit", fontsize=7)


def _plot_shares(axes: Any, shares: Any) -> None:
    below = [0.0] * len(shares)
    for sink in range(shares.shape[1]):
        part = [100 * share for share in shares[:, sink].tolist()]
        axes.bar(range(len(part)), part, bottom=below, label=f"token {sink}")
        below = [a + b for a, b in zip(below, part, strict=True)]
    axes.set(
        title="Attention that the first tokens of a long text get, averaged over heads and queries",
        xlabel="layer",
        ylabel="share of attention (%)",
        xlim=(-0.6, len(shares) - 0.4),
        ylim=(0, 100),
    )
    axes.set_xticks(range(0, len(shares), 1 if len(shares) <= 16 else 2))
    axes.grid(visible=False, axis="x")
    axes.legend(ncols=min(shares.shape[1], 8))


def _variant(row: Row) -> str:
    """What a token sees, in words."""
    if row["window_size"] is None:
        return "everything (dense)"
    sinks, window = row["num_sink_tokens"], row["window_size"]
    if row["variant"].startswith("recompute"):
        return f"window of {sinks + window:,}, computed anew"
    return f"{sinks} sink tokens + window of {window:,}" if sinks else f"window of {window:,} alone"


def _mark_full_caches(axes: Any, rows: Sequence[Row]) -> None:
    sizes = {row["num_sink_tokens"] + row["window_size"] for row in rows if row["window_size"]}
    for size in sorted(sizes):
        axes.axvline(size, color="0.4", linestyle="--", linewidth=1.0)
        axes.annotate(
            f"{size:,} tokens: the window is full",
            (size, 0.98),
            xycoords=axes.get_xaxis_transform(),
            xytext=(4, 0),
            textcoords="offset points",
            rotation=90,
            va="top",
            fontsize="x-small",
            color="0.3",
            bbox={"facecolor": "white", "alpha": 0.8, "linewidth": 0, "pad": 1},
        )
