"""The command ``paged-stream perplexity``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from paged_stream.commands.command import Command
from paged_stream.commands.evaluation_options import (
    ENGINE,
    add_outputs,
    check_outputs,
    check_positive,
    shared_fields,
)
from paged_stream.commands.options import settings_group
from paged_stream.config import EngineConfig

if TYPE_CHECKING:
    from paged_stream.evaluation.variants import Variant

SINKS = settings_group(
    "visible tokens",
    EngineConfig,
    only=("num_sink_tokens", "window_size"),
    defaults={"window_size": 1020},
)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("texts", nargs="+", metavar="TEXT", help="UTF-8 files, read in this order")
    parser.add_argument("--tokens", type=int, help="predictions to score (default: all)")
    parser.add_argument(
        "--modes",
        nargs="+",
        default=["dense", "window", "recompute", "streaming"],
        metavar="MODE",
        help="some of dense, window, recompute, streaming (default: all)",
    )
    parser.add_argument(
        "--ablation", help="instead of modes: sinks (0, 1, 2, 4, 8 of them), cache or linebreak"
    )
    parser.add_argument(
        "--cache-sizes",
        nargs="+",
        type=int,
        default=[256, 512, 1024, 2048, 4096],
        metavar="N",
        help="of --ablation cache: sinks and window together (default: 256 to 4096)",
    )
    parser.add_argument(
        "--recompute-every",
        type=int,
        default=64,
        metavar="N",
        help="recompute the window for every N-th prediction only (default: %(default)s); the "
        'column "sampled" compares the variants at these',
    )
    parser.add_argument("--every", type=int, help="predictions per point of a curve")
    group = parser.add_argument_group("one long run of a single streaming variant")
    group.add_argument("--cycle", action="store_true", help="begin the texts anew at their end")
    group.add_argument(
        "--save-stream",
        type=Path,
        metavar="FILE",
        help="save the stream after every point, its results as JSON lines in FILE.jsonl",
    )
    group.add_argument("--resume", action="store_true", help="go on with the saved stream")
    add_outputs(parser, curves=True)


def run(args: argparse.Namespace) -> int:
    from paged_stream.evaluation.corpus import read_texts

    variants = _variants(args)
    check_outputs(args)
    texts = read_texts(args.texts)
    if args.save_stream is not None or args.resume or args.cycle:
        return _long_run(args, variants, texts)
    return _compare(args, variants, texts)


def _variants(args: argparse.Namespace) -> list[Variant]:
    """Raises ValueError for options that are out of range."""
    from paged_stream.evaluation.variants import ablation, modes

    for name in ("tokens", "every", "recompute_every"):
        check_positive(name, getattr(args, name))
    if args.window_size is None:
        raise ValueError("window_size must be an int, got None; --modes dense sees everything")
    sizes = args.num_sink_tokens, args.window_size
    if args.ablation is None:
        return modes(args.modes, *sizes)
    return ablation(args.ablation, *sizes, cache_sizes=args.cache_sizes)


def _compare(args: argparse.Namespace, variants: list[Variant], texts: list[str]) -> int:
    from paged_stream.evaluation import plots, report
    from paged_stream.evaluation.perplexity import measure

    engine = ENGINE.read(args)
    recomputes = any(variant.recompute for variant in variants)
    rows = []
    scores = []
    for variant in variants:
        score = measure(
            variant,
            texts,
            engine=engine,
            num_tokens=args.tokens,
            every=args.every,
            sample_every=args.recompute_every if recomputes else None,
            show_progress=True,
        )
        scores.append(score)
        rows = [shared_fields(engine) | row for row in report.summarize(scores)]
        if args.json is not None:
            report.write_json(args.json, rows)  # survives a Ctrl-C
    print(report.table(rows))
    if args.csv is not None:
        report.write_curves(args.csv, rows)
    if args.plot is not None:
        draw = plots.plot_curves if args.ablation is None else plots.plot_ablation
        draw(rows, args.plot)
    return 0


def _long_run(args: argparse.Namespace, variants: list[Variant], texts: list[str]) -> int:
    from paged_stream.evaluation import plots, report
    from paged_stream.evaluation.long_run import measure_long

    if args.save_stream is None:
        raise ValueError("save_stream must be given with cycle and resume")
    if len(variants) != 1:
        names = ", ".join(variant.name for variant in variants)
        raise ValueError(f"save_stream runs one variant, such as --modes streaming, got {names}")
    engine = ENGINE.read(args)
    score = measure_long(
        variants[0],
        texts,
        engine=engine,
        num_tokens=args.tokens,
        every=args.every or 16_384,
        cycle=args.cycle,
        save_stream=args.save_stream,
        resume=args.resume,
        show_progress=True,
    )
    rows = [shared_fields(engine) | row for row in report.summarize([score])]
    print(report.table(rows))
    if args.json is not None:
        report.write_json(args.json, rows)
    if args.csv is not None:
        report.write_curves(args.csv, rows)
    if args.plot is not None:
        plots.plot_long(rows[0], args.plot)
    return 0


COMMAND = Command(
    name="perplexity",
    description=(
        "Perplexity over long text: dense, plain window, window recomputed, sinks + window. All "
        "variants score the same tokens."
    ),
    example=(
        "paged-stream perplexity book.txt --tokens 8192 --window-size 508 --plot curves.png\n"
        "paged-stream perplexity book.txt --ablation sinks\n"
        "paged-stream perplexity *.txt --modes streaming --tokens 4000000 --cycle --save-stream "
        "run.stream"
    ),
    arguments="TEXT ...",
    groups=(SINKS, ENGINE),
    add_options=add_options,
    run=run,
)
