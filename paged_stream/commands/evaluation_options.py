"""Options that the evaluation commands share, and their checks."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from paged_stream.commands.options import engine_group

# All but what an evaluation varies or must have its own way.
ENGINE = engine_group(
    without=("num_sink_tokens", "window_size", "max_num_seqs", "enable_prefix_caching", "seed")
    + ("lora_modules",)
)


def shared_fields(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What every row of a result file says about the run, of the engine's settings."""
    names = ("model", "dtype", "quantization", "kv_cache_dtype")
    return {name: settings[name] for name in names if name in settings}


def add_outputs(parser: argparse.ArgumentParser, *, curves: bool = False) -> None:
    group = parser.add_argument_group("results, besides the table that is printed")
    group.add_argument("--json", type=Path, metavar="FILE", help="everything, as JSON lines")
    if curves:
        group.add_argument("--csv", type=Path, metavar="FILE", help="perplexity against position")
    group.add_argument("--plot", type=Path, metavar="FILE", help="a picture; needs matplotlib")


def check_outputs(args: argparse.Namespace) -> None:
    """Say before a long run what would fail behind it."""
    for name in ("json", "csv", "plot"):
        path = getattr(args, name, None)
        if path is not None and not path.absolute().parent.is_dir():
            raise ValueError(f"{name}: there is no folder {path.absolute().parent}")
    if args.plot is not None:
        from paged_stream.evaluation.plot_style import pyplot

        figure = pyplot().figure()
        endings = figure.canvas.get_supported_filetypes()
        pyplot().close(figure)
        if args.plot.suffix.lstrip(".") not in endings:
            raise ValueError(f"plot must end in one of {', '.join(endings)}, got {args.plot}")


def check_cache(num_sink_tokens: int, cache: int) -> None:
    """Check sinks and window that are given as one size.

    Raises:
        ValueError: they are out of range.
    """
    from paged_stream.evaluation.variants import check_sizes

    if cache <= num_sink_tokens:
        raise ValueError(f"cache must be more than num_sink_tokens={num_sink_tokens}, got {cache}")
    check_sizes(num_sink_tokens, cache - num_sink_tokens)


def check_positive(name: str, value: int | None) -> None:
    if value is not None and value < 1:
        raise ValueError(f"{name} must be >= 1, got {value}")
