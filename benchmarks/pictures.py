"""Draws the pictures in benchmarks/results again, from the result files beside them.

    python -m benchmarks.pictures

Attention maps are left alone, because their logits are in no file: `python -m benchmarks.evidence
--only attention_smollm2 attention_qwen --redo` measures and draws them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from benchmarks.evidence_text import Rows
from benchmarks.harness import RESULTS, add_results_option, parser, read_results
from benchmarks.plots import plot_recompute, plot_stream
from paged_stream.evaluation import plots

# What draws a result file, by the first word of its name.
DRAW: dict[str, Callable[[Rows, Path], None]] = {
    "modes": plots.plot_curves,
    "sinks": plots.plot_ablation,
    "cache": plots.plot_ablation,
    "linebreak": plots.plot_ablation,
    "recall": plots.plot_recall,
    "dialogue": plots.plot_rounds,
    "long": lambda rows, path: plots.plot_long(rows[0], path),
    "recompute": lambda rows, path: plot_recompute(rows, path.parent),
    "stream": lambda rows, path: plot_stream(rows[0]["points"], path.parent),
}


def redraw(folder: Path = RESULTS) -> list[Path]:
    """Draw every picture of a folder whose figures are in a file; returns their paths."""
    results = read_results(folder)
    drawn = []
    for path in sorted(folder.glob("*.png")):
        draw = DRAW.get(path.stem.split("_")[0])
        if draw is not None and (rows := results.get(path.stem)):
            draw(rows, path)
            drawn.append(path)
    return drawn


def main() -> None:
    arguments = parser(__doc__)
    add_results_option(arguments)
    for path in redraw(arguments.parse_args().results):
        print(f"drew {path}")


if __name__ == "__main__":
    main()
